// Patches at flat positions of a feature map, and their gradients added back. Included once for each instruction set.
//
// Threads share out blocks of channels, so that no two write the same place. Where the channels lie apart (contiguous
// features) a block's patches pass through a small transposed tile: each is read or written a cache line at a time.

constexpr int64_t CHANNEL_BLOCK = 16;

struct Place {
  int64_t offset;  // of the position in the spatial grid, in elements
  int64_t sample;
};

inline int64_t spatial_offset(const Features& f, int64_t position) {
  int64_t offset = 0;
  for (int64_t d = f.rank - 1; d >= 0; --d) {
    offset += position % f.spatial[d] * f.spatial_stride[d];
    position /= f.spatial[d];
  }
  return offset;
}

// Places of an image in the order of memory: neighbours share pages, and a repeated position stands in one run.
inline void sorted_places(const Features& f, const Patches& p, int64_t image, Place* places) {
  for (int64_t s = 0; s < p.samples; ++s)
    places[s] = {spatial_offset(f, p.index[image * p.index_stride[0] + s * p.index_stride[1]]), s};
  std::sort(places, places + p.samples, [](const Place& a, const Place& b) {
    return a.offset != b.offset ? a.offset < b.offset : a.sample < b.sample;
  });
}

inline int64_t blocks_of(const Features& f, const Patches& p) {
  return p.samples ? f.images * ((f.channels + CHANNEL_BLOCK - 1) / CHANNEL_BLOCK) : 0;
}

// Calls body(image, first channel, last channel, places of the image) for a block, given the places of its layer.
template <typename Body>
void with_block(const Features& f, const Patches& p, const Place* places, int64_t item, const Body& body) {
  const int64_t blocks = (f.channels + CHANNEL_BLOCK - 1) / CHANNEL_BLOCK;
  const int64_t image = item / blocks, first = item % blocks * CHANNEL_BLOCK;
  body(image, first, std::min(first + CHANNEL_BLOCK, f.channels), places + image * p.samples);
}

// Calls body(layer, item) for every block of channels of every image of every layer, the places sorted before.
template <typename Body>
void for_each_block(const Features* f, const Patches* p, int64_t layers, Place* places, const Body& body) {
  int64_t images = 0, blocks = 0, work = 0;
  for (int64_t n = 0; n < layers; ++n) {
    images += f[n].images;
    blocks += blocks_of(f[n], p[n]);
    work += f[n].images * f[n].channels * p[n].samples;
  }
  if (blocks == 0) return;
  const bool worth_threads = work > 8192;
  for_each_item(images, worth_threads, [&](int64_t at) {
    Place* to = places;
    int64_t n = 0;
    for (; at >= f[n].images; ++n) {
      at -= f[n].images;
      to += f[n].images * p[n].samples;
    }
    sorted_places(f[n], p[n], at, to + at * p[n].samples);
  });
  for_each_item(blocks, worth_threads, [&](int64_t at) {
    const Place* from = places;
    int64_t n = 0;
    for (; at >= blocks_of(f[n], p[n]); ++n) {
      at -= blocks_of(f[n], p[n]);
      from += f[n].images * p[n].samples;
    }
    body(n, at, from);
  });
}

inline int64_t places_of(const Features* f, const Patches* p, int64_t layers) {
  int64_t count = 0;
  for (int64_t n = 0; n < layers; ++n) count += f[n].images * p[n].samples;
  return count;
}

template <typename T>
void gather_block(
    const Features& f, const Patches& p, int64_t image, int64_t first, int64_t last, const Place* places) {
  const T* from = static_cast<const T*>(f.data) + image * f.image_stride;
  T* to = static_cast<T*>(p.data) + image * p.stride[0];
  if (f.channel_stride == 1 && p.stride[2] == 1) {
    for (int64_t n = 0; n < p.samples; ++n)
      std::copy_n(from + places[n].offset + first, last - first, to + places[n].sample * p.stride[1] + first);
    return;
  }
  constexpr int64_t run = 256;
  T tile[run][CHANNEL_BLOCK];
  for (int64_t n0 = 0; n0 < p.samples; n0 += run) {
    const int64_t count = std::min(run, p.samples - n0);
    for (int64_t c = first; c < last; ++c) {
      const T* plane = from + c * f.channel_stride;
      for (int64_t n = 0; n < count; ++n) tile[n][c - first] = plane[places[n0 + n].offset];
    }
    for (int64_t n = 0; n < count; ++n) {
      T* patch = to + places[n0 + n].sample * p.stride[1];
      for (int64_t c = first; c < last; ++c) patch[c * p.stride[2]] = tile[n][c - first];
    }
  }
}

// A run of equal positions is added up in Sum before it is rounded once.
template <typename T>
void scatter_values(const Features& f, const Patches& p) {
  using Sum = Compute<T>;
  Scratch<Place> sorted(places_of(&f, &p, 1));
  const auto block = [&](int64_t image, int64_t first, int64_t last, const Place* places) {
    T* to = static_cast<T*>(f.data) + image * f.image_stride;
    const T* from = static_cast<const T*>(p.data) + image * p.stride[0];
    constexpr int64_t run = 256;
    Sum tile[run][CHANNEL_BLOCK];
    int64_t offset[run];
    for (int64_t n = 0; n < p.samples;) {
      int64_t count = 0;
      for (; n < p.samples && count < run; ++count) {  // one sum for each position
        offset[count] = places[n].offset;
        Sum* sum = tile[count];
        std::fill_n(sum, CHANNEL_BLOCK, Sum(0));
        for (; n < p.samples && places[n].offset == offset[count]; ++n) {
          const T* patch = from + places[n].sample * p.stride[1];
          for (int64_t c = first; c < last; ++c) sum[c - first] += Sum(patch[c * p.stride[2]]);
        }
      }
      if (f.channel_stride == 1) {
        for (int64_t m = 0; m < count; ++m)
          for (int64_t c = first; c < last; ++c) {
            T& value = to[offset[m] + c];
            value = T(Sum(value) + tile[m][c - first]);
          }
        continue;
      }
      for (int64_t c = first; c < last; ++c) {
        T* plane = to + c * f.channel_stride;
        const T* ahead = plane + (c + 2 < last ? 2 * f.channel_stride : 0);  // lines to be written soon
        for (int64_t m = 0; m < count; ++m) {
          __builtin_prefetch(ahead + offset[m], 1, 2);
          T& value = plane[offset[m]];
          value = T(Sum(value) + tile[m][c - first]);
        }
      }
    }
  };
  for_each_block(&f, &p, 1, sorted, [&](int64_t, int64_t item, const Place* places) {
    with_block(f, p, places, item, block);
  });
}

inline void gather(const Features* f, const Patches* p, int64_t layers) {
  Scratch<Place> sorted(places_of(f, p, layers));
  for_each_block(f, p, layers, sorted, [&](int64_t n, int64_t item, const Place* places) {
    with_block(f[n], p[n], places, item, [&](int64_t image, int64_t first, int64_t last, const Place* sorted_places) {
      switch (f[n].dtype) {
        case Dtype::f32:
          return gather_block<uint32_t>(f[n], p[n], image, first, last, sorted_places);
        case Dtype::f64:
          return gather_block<uint64_t>(f[n], p[n], image, first, last, sorted_places);
        case Dtype::bf16:
        case Dtype::f16:
          return gather_block<uint16_t>(f[n], p[n], image, first, last, sorted_places);
      }
    });
  });
}

inline void scatter(const Features& f, const Patches& p) {
  with_elements(f.dtype, [&](auto element) { scatter_values<decltype(element)>(f, p); });
}
