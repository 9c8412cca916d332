"""Builds the C++ kernels where that is possible; everything else about the package is in pyproject.toml.

The kernels are optional: without a compiler or torch's headers the package installs all the same, runs on plain
PyTorch, and `fastsketch info` says why. Made are: fastsketch/_C.so, operators against the libtorch stable ABI (no
Python in it, one binary for torch 2.10 and later); fastsketch/_C_cuda.so, more of them for a GPU, where there are nvcc
and a torch with CUDA; and fastsketch._facts, a pybind11 module with build and processor facts. torch is never imported
nor downloaded here: its headers are looked up where it is installed, so this also works in pip's isolated builds.

Environment: FASTSKETCH_BUILD=0 builds nothing, =1 makes a failed build an error; FASTSKETCH_WERROR=1 makes warnings
errors; FASTSKETCH_SANITIZE=1 builds with AddressSanitizer and UBSan; MAX_JOBS limits parallel compilation.
FASTSKETCH_CUDA=0 leaves the GPU library out, =1 makes its failure an error; CUDA_HOME says where nvcc is (else PATH),
TORCH_CUDA_ARCH_LIST what it builds for.
"""

import functools
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Distribution, Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
REPORT = ROOT / "fastsketch" / "_build_report.txt"
CUDA_REPORT = "_cuda_report.txt"
LEAST_TORCH = (2, 10)
CUDA_ARCHITECTURES = "8.0 9.0+PTX"  # the PTX serves later ones


def find_torch() -> Path:
    """The installed torch's folder, without importing it (an isolated build cannot)."""
    paths = [sysconfig.get_path("platlib"), sysconfig.get_path("purelib"), *sys.path]
    for path in dict.fromkeys(p for p in paths if p):
        folder = Path(path) / "torch"
        if (folder / "include" / "torch" / "csrc" / "stable" / "library.h").exists():
            return folder
    raise FileNotFoundError("torch 2.10 or later is not installed in this environment: install it first")


def torch_version(torch: Path) -> str:
    match = re.search(r"__version__ = ['\"]([^'\"]+)", (torch / "version.py").read_text())
    version = match.group(1) if match else "0.0"
    if tuple(int(x) for x in version.split(".")[:2]) < LEAST_TORCH:
        raise RuntimeError(f"torch {version} is too old: the kernels need 2.10 or later")
    return version


def pybind11_include(torch: Path) -> str:
    """The pybind11 package's headers, or the ones torch ships."""
    try:
        import pybind11
    except ImportError:
        return str(torch / "include")
    return pybind11.get_include()


def find_nvcc(torch: Path) -> str:
    """nvcc of CUDA_HOME or on PATH, of the CUDA version torch was built for."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = shutil.which("nvcc", path=str(Path(home) / "bin") if home else None)
    if not nvcc:
        raise FileNotFoundError(f"there is no nvcc in {Path(home) / 'bin' if home else 'PATH'}")
    match = re.search(r"^cuda.*= ['\"](\d+)", (torch / "version.py").read_text(), re.MULTILINE)
    if not match or not (torch / "lib" / "libtorch_cuda.so").exists():
        raise RuntimeError("this torch was built without CUDA")
    told = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    release = re.search(r"release (\d+)", told)
    if not release or release.group(1) != match.group(1):
        raise RuntimeError(f"nvcc is of CUDA {release.group(1) if release else '?'}, torch of CUDA {match.group(1)}")
    return nvcc


def cuda_targets() -> tuple[list[str], list[str]]:
    """What TORCH_CUDA_ARCH_LIST asks for: nvcc's flags and the names of the chips."""
    flags, names = [], []
    for word in re.split(r"[ ;,]+", (os.environ.get("TORCH_CUDA_ARCH_LIST") or CUDA_ARCHITECTURES).strip(" ;,")):
        match = re.fullmatch(r"(\d+)\.(\d+)([af]?)(\+PTX)?", word)
        if not match:
            raise ValueError(f"TORCH_CUDA_ARCH_LIST must look like '{CUDA_ARCHITECTURES}', got {word!r}")
        number = "".join(match.group(1, 2, 3))
        names.append(f"sm_{number}")
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if match.group(4):
            names.append(f"compute_{number}")
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags, names


def jobs() -> int:
    return int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)


def compile_in_threads(compiler, sources: list[str], **options) -> list[str]:
    """Stands for the compiler's `compile`."""

    def compile_one(source: str) -> list[str]:
        return type(compiler).compile(compiler, [source], **options)

    with ThreadPoolExecutor(jobs()) as pool:
        return [name for names in pool.map(compile_one, sources) for name in names]


def compile_with_ninja(
    compiler, sources, output_dir=None, macros=None, include_dirs=None, debug=0, extra_postargs=None, depends=None
) -> list[str]:
    """Stands for the compiler's `compile`: the same commands, run by ninja, which also tracks headers."""
    macros, objects, postargs, options, build = compiler._setup_compile(
        output_dir, macros, include_dirs, sources, depends, extra_postargs
    )
    arguments = compiler._get_cc_args(options, debug, None)
    command = getattr(compiler, "compiler_so_cxx", None) or compiler.compiler_so
    line = shlex.join([*command, *arguments, *postargs]).replace("$", "$$")
    rules = [f"rule cxx\n  command = {line} -MMD -MF $out.d $in -o $out\n  depfile = $out.d\n  deps = gcc\n"]
    for target in objects:
        rules.append(f"build {Path(target).absolute()}: cxx {Path(build[target][0]).absolute()}\n")
    folder = Path(os.path.commonpath([str(Path(target).absolute().parent) for target in objects]))
    script = folder / f"{Path(sources[0]).stem}.ninja"
    script.write_text("\n".join(rules))
    done = subprocess.run(["ninja", "-f", script.name, "-j", str(jobs())], cwd=folder)
    if done.returncode:
        raise RuntimeError("the compiler failed (pip install -v shows what it said)")
    return objects


class BuildKernels(build_ext):
    """build_ext that fails softly, compiles in parallel and names the operators' library plainly."""

    def get_ext_filename(self, fullname: str) -> str:
        """Only _facts holds Python, so only its name carries a Python version."""
        *package, name = fullname.split(".")
        if name in ("_C", "_C_cuda"):
            return str(Path(*package) / f"{name}.so")
        return super().get_ext_filename(fullname)

    def get_export_symbols(self, ext: Extension) -> list[str]:
        """Nothing needs a PyInit function by name."""
        return ext.export_symbols

    def run(self) -> None:
        mode = os.environ.get("FASTSKETCH_BUILD", "")
        in_place = self.inplace  # setuptools changes it while it builds
        reason = "switched off by FASTSKETCH_BUILD=0" if mode == "0" else ""
        self.cuda_reason = reason
        try:
            if not reason:
                self.configure()
                super().run()
        except (Exception, SystemExit) as error:
            if mode == "1":
                raise
            reason = " ".join(f"{type(error).__name__}: {error}".split())
        self.report(reason, in_place)
        self.report_cuda(reason or self.cuda_reason, in_place)

    def configure(self) -> None:
        """Fill in what only the target environment knows."""
        torch = find_torch()
        version = torch_version(torch)
        flags = ["-std=c++17", "-O3", "-g0", "-fvisibility=hidden", "-fno-math-errno", "-Wall", "-Wextra", "-Wno-psabi"]
        link = []
        if os.environ.get("FASTSKETCH_WERROR") == "1":
            flags.append("-Werror")
        if os.environ.get("FASTSKETCH_SANITIZE") == "1":
            sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
            flags += [*sanitize, "-O1", "-g", "-fno-omit-frame-pointer"]
            link += sanitize
        operators, cuda, facts = self.extensions
        operators.define_macros = [("TORCH_TARGET_VERSION", f"0x{LEAST_TORCH[0]:02x}{LEAST_TORCH[1]:02x}{'0' * 12}")]
        # torch's headers as system headers: their warnings are not ours.
        operators.extra_compile_args = [*flags, "-isystem", str(torch / "include")]
        operators.library_dirs = [str(torch / "lib")]
        operators.libraries = ["torch_cpu"]
        operators.extra_link_args = link
        cuda.define_macros = operators.define_macros
        cuda.optional = True
        facts.define_macros = [
            ("FASTSKETCH_FLAGS", f'"{" ".join(flags)}"'),
            ("FASTSKETCH_TORCH", f'"{version}"'),
            ("FASTSKETCH_LEAST_TORCH", f'"{".".join(map(str, LEAST_TORCH))}"'),
        ]
        facts.extra_compile_args = [*flags, "-isystem", pybind11_include(torch)]
        facts.extra_link_args = link

    def build_extensions(self) -> None:
        """Compile several files at a time, with ninja where it is there (then only what changed)."""
        command = (getattr(self.compiler, "compiler_so_cxx", None) or self.compiler.compiler_so)[0]
        if shutil.which(command) is None:
            raise FileNotFoundError(f"no C++ compiler: {command} was not found (install one, or name it by CXX)")
        ninja = shutil.which("ninja")
        self.compiler.compile = functools.partial(compile_with_ninja if ninja else compile_in_threads, self.compiler)
        super().build_extensions()

    def build_extension(self, ext: Extension) -> None:
        """The GPU library may fail; what it was built for is a fact."""
        if ext.name == "fastsketch._C_cuda":
            try:
                self.build_cuda(ext)
            except Exception as error:
                self.cuda_reason = " ".join(f"{type(error).__name__}: {error}".split())
                Path(self.get_ext_fullpath(ext.name)).unlink(missing_ok=True)
            return
        if ext.name == "fastsketch._facts":
            names = " ".join([] if self.cuda_reason else cuda_targets()[1])
            ext.define_macros.append(("FASTSKETCH_CUDA_ARCHITECTURES", f'"{names}"'))
            stamp = Path(self.build_temp) / "facts.txt"
            if not stamp.exists() or stamp.read_text() != names:
                Path(self.get_ext_fullpath(ext.name)).unlink(missing_ok=True)
                stamp.parent.mkdir(parents=True, exist_ok=True)
                stamp.write_text(names)
        super().build_extension(ext)

    def build_cuda(self, ext: Extension) -> None:
        """Compile and link with nvcc, if anything changed."""
        if os.environ.get("FASTSKETCH_CUDA") == "0":
            raise RuntimeError("switched off by FASTSKETCH_CUDA=0")
        if os.environ.get("FASTSKETCH_SANITIZE") == "1":
            raise RuntimeError("not built with sanitizers")
        torch = find_torch()
        command = [find_nvcc(torch), "-shared", "-cudart=shared", "-std=c++17", "-O3", "-DUSE_CUDA", *cuda_targets()[0]]
        # A product that is contracted into the next sum would round otherwise than the reference.
        command += ["-fmad=false", "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra,-Wno-psabi"]
        if os.environ.get("FASTSKETCH_WERROR") == "1":
            command += ["-Werror=all-warnings", "-Xcompiler=-Werror"]
        command += [f"-D{name}={value}" for name, value in ext.define_macros]
        command += ["-isystem", str(torch / "include"), *ext.sources]
        command += [f"-L{torch / 'lib'}", "-ltorch_cpu", "-ltorch_cuda"]
        target, stamp = Path(self.get_ext_fullpath(ext.name)), Path(self.build_temp) / "cuda.txt"
        line = shlex.join(command)
        files = [target, *map(Path, (*ext.sources, *ext.depends))]
        if target.exists() and stamp.exists() and stamp.read_text() == line:
            times = [file.stat().st_mtime for file in files]
            if times[0] >= max(times):
                return
        for folder in (target.parent, stamp.parent):
            folder.mkdir(parents=True, exist_ok=True)
        stamp.unlink(missing_ok=True)
        self.announce(line, level=2)
        partial = target.with_suffix(".partial")
        status = subprocess.run([*command, "-o", str(partial)]).returncode
        if status:
            partial.unlink(missing_ok=True)
            raise RuntimeError(f"nvcc failed with status {status}; what it said is in the build's output")
        os.replace(partial, target)
        stamp.write_text(line)

    def report_cuda(self, reason: str, in_place: bool) -> None:
        """Leave the reason why there is no GPU library for `fastsketch info`; take away one of an earlier build."""
        folder = REPORT.parent if in_place else Path(self.build_lib) / "fastsketch"
        (folder / CUDA_REPORT).unlink(missing_ok=True)
        if reason:
            (folder / "_C_cuda.so").unlink(missing_ok=True)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / CUDA_REPORT).write_text(f"not built at installation: {reason}\n")
            if os.environ.get("FASTSKETCH_CUDA") == "1":
                raise RuntimeError(f"CUDA kernels not built, and FASTSKETCH_CUDA=1 asks for them: {reason}")

    def report(self, reason: str, in_place: bool) -> None:
        """Say on screen what happened, and leave the reason of a failure for `fastsketch info`.

        Libraries of an earlier build in this folder are taken away then: they may be of other sources.
        """
        target = REPORT if in_place else Path(self.build_lib) / "fastsketch" / REPORT.name
        target.unlink(missing_ok=True)
        if not reason:
            self.announce("fastsketch: C++ kernels built", level=2)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        for extension in self.extensions:
            (target.parent / Path(self.get_ext_filename(extension.name)).name).unlink(missing_ok=True)
        target.write_text(f"not built at installation: {reason}\n")
        print(f"\nfastsketch: C++ kernels {target.read_text()}It runs on plain PyTorch instead.\n", file=sys.stderr)

    def get_outputs(self) -> list[str]:
        """Only what was made: a wheel must not ask for a library that was not built."""
        return [path for path in super().get_outputs() if Path(path).exists()]


class InPlace(Distribution):
    """Reads no pyproject.toml: a build in place needs nothing of it, and setuptools before 77 fails at its license."""

    def parse_config_files(self, filenames=None, ignore_option_errors=False) -> None:
        super().parse_config_files(filenames or [os.devnull], ignore_option_errors)


HEADERS = [*sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.h")), "setup.py"]
KERNELS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc" / "cpu").glob("*.cpp"))
setup(
    ext_modules=[
        Extension("fastsketch._C", ["csrc/registration.cpp", *KERNELS], depends=HEADERS, language="c++"),
        Extension("fastsketch._C_cuda", ["csrc/cuda/sampling_cuda.cu"], depends=HEADERS, language="c++"),
        Extension("fastsketch._facts", ["csrc/module.cpp"], depends=HEADERS, language="c++"),
    ]
    if platform.system() != "Windows"
    else [],
    cmdclass={"build_ext": BuildKernels},
    distclass=InPlace if {"build_ext", "--inplace"} <= set(sys.argv) else Distribution,
)
