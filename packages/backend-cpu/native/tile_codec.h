// Moves weights between the checkpoint's row-major form and one tile of `cpu/r16@1`.
#ifndef MOE_BACKEND_CPU_TILE_CODEC_H_
#define MOE_BACKEND_CPU_TILE_CODEC_H_

#include <cstdint>

#include "weight_format.h"

namespace moe {

// Writes rows [first_row, first_row + num_rows), num_rows <= 16, into a zeroed tile. `codes` and `scale_codes` are the
// whole matrix.
void pack_tile(WeightFormat format, int64_t columns, const uint8_t* codes, const uint8_t* scale_codes,
               int64_t first_row, int64_t num_rows, uint8_t* tile);

// The inverse; null pointers are skipped.
void unpack_tile(WeightFormat format, int64_t columns, const uint8_t* tile, int64_t first_row, int64_t num_rows,
                 uint8_t* codes, uint8_t* scale_codes);

}  // namespace moe

#endif  // MOE_BACKEND_CPU_TILE_CODEC_H_
