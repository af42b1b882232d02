#ifndef MOE_CPU_DEVICE_MEMORY_H_
#define MOE_CPU_DEVICE_MEMORY_H_

#include <cstddef>
#include <cstdint>

namespace moe {

/*
 * Zeroed memory of its own pages, aligned to 64 bytes at least. From two MiB on it is aligned to huge pages and the
 * system is asked for them: kernels read weights and caches at random, and a small page per read costs more than the
 * read.
 */
class DeviceMemory {
 public:
  DeviceMemory() = default;
  /* Empty (data() is null) when the system refuses. */
  explicit DeviceMemory(uint64_t bytes);
  ~DeviceMemory();
  DeviceMemory(DeviceMemory&& other) noexcept;
  DeviceMemory& operator=(DeviceMemory&& other) noexcept;

  uint8_t* data() const { return data_; }
  uint64_t bytes() const { return bytes_; }

 private:
  void* mapping_ = nullptr;
  size_t mapping_bytes_ = 0;
  uint8_t* data_ = nullptr;
  uint64_t bytes_ = 0;
};

}  // namespace moe

#endif  // MOE_CPU_DEVICE_MEMORY_H_
