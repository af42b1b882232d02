// How one input row lies in the workspace once a kernel has prepared it.
#ifndef MOE_BACKEND_CPU_PREPARED_ROW_H_
#define MOE_BACKEND_CPU_PREPARED_ROW_H_

#include "weight_format.h"

namespace moe {

// One record per row: values, then scales, then (NVFP4) offsets. Offsets are in bytes from the record's start, and the
// record is a multiple of 64 bytes that is an odd number of cache lines, because rows at a power-of-two distance share
// one set of the L1 cache.
struct RowLayout {
  InputKind kind = InputKind::kFloat;
  Element element = Element::kF32;
  int64_t columns = 0;
  // A multiple of 128; the values beyond `columns` are zero.
  int64_t padded = 0;
  // f32: kNvfp4 [padded/16], the decoded e4m3 block scale; kFp8Group128 [padded/128]; kFp8Token [1].
  int64_t scales = 0;
  // i32, kNvfp4 only, [padded/16]: -12 times the sum of the group's doubled codes.
  int64_t offsets = 0;
  int64_t bytes = 0;
};

inline RowLayout make_row_layout(InputKind kind, Element element, int64_t columns) {
  RowLayout row;
  row.kind = kind;
  row.element = element;
  row.columns = columns;
  row.padded = round_up(columns, 128);
  const int64_t element_bytes = element == Element::kF32 ? 4 : element == Element::kBf16 ? 2 : 1;
  int64_t num_scales = 0;
  if (kind == InputKind::kNvfp4) num_scales = row.padded / 16;
  if (kind == InputKind::kFp8Group128) num_scales = row.padded / 128;
  if (kind == InputKind::kFp8Token) num_scales = 1;
  row.scales = row.padded * element_bytes;
  row.offsets = row.scales + num_scales * 4;
  row.bytes = round_up(row.offsets + (kind == InputKind::kNvfp4 ? num_scales * 4 : 0), kLine);
  if (row.bytes / kLine % 2 == 0) row.bytes += kLine;
  return row;
}

}  // namespace moe

#endif  // MOE_BACKEND_CPU_PREPARED_ROW_H_
