#include "device_memory.h"

#include <sys/mman.h>

#include <utility>

namespace moe {
namespace {

constexpr uint64_t kHugePage = uint64_t{2} << 20;

}  // namespace

DeviceMemory::DeviceMemory(uint64_t bytes) {
  const bool huge = bytes >= kHugePage;
  const uint64_t wanted = huge ? bytes + kHugePage : bytes + 1;
  if (wanted < bytes || wanted > SIZE_MAX) return;
  void* mapping = mmap(nullptr, wanted, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping == MAP_FAILED) return;
  mapping_ = mapping;
  mapping_bytes_ = wanted;
  bytes_ = bytes;
  const auto address = reinterpret_cast<uintptr_t>(mapping);
  data_ = reinterpret_cast<uint8_t*>(huge ? (address + kHugePage - 1) / kHugePage * kHugePage : address);
#ifdef MADV_HUGEPAGE
  /* Advice only: where the system has no huge pages, everything works as before. */
  if (huge) madvise(data_, bytes, MADV_HUGEPAGE);
#endif
}

DeviceMemory::~DeviceMemory() {
  if (mapping_ != nullptr) munmap(mapping_, mapping_bytes_);
}

DeviceMemory::DeviceMemory(DeviceMemory&& other) noexcept { *this = std::move(other); }

DeviceMemory& DeviceMemory::operator=(DeviceMemory&& other) noexcept {
  std::swap(mapping_, other.mapping_);
  std::swap(mapping_bytes_, other.mapping_bytes_);
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

}  // namespace moe
