// The kernels for the least processor the compiler aims at: 16-byte vectors.
#include "level.h"

#define LEVEL baseline
#define VECTOR_BYTES 16
#define ROW_BLOCK_ROWS 6
#include "all.h"
