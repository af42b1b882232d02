#include "exposed_memory.h"

#include <mutex>
#include <unordered_map>
#include <utility>

namespace moe {
namespace {

using Owner = std::shared_ptr<const DeviceMemory>;

/* Addresses are unique in the process, whichever environments (worker threads) live in it. */
struct Registry {
  std::mutex mutex;
  std::unordered_map<const void*, Owner> by_address;
};

/* Never destroyed: environments may end after static destructors have run. */
Registry& registry() {
  static auto* const instance = new Registry;
  return *instance;
}

void forget(const void* data) {
  Owner last; /* freed after the lock was released */
  const std::lock_guard lock(registry().mutex);
  const auto found = registry().by_address.find(data);
  if (found == registry().by_address.end()) return;
  last = std::move(found->second);
  registry().by_address.erase(found);
}

}  // namespace

Napi::Value expose_memory(Napi::Env env, uint64_t bytes) {
  const auto memory = std::make_shared<DeviceMemory>(bytes);
  if (memory->data() == nullptr) return env.Undefined();
  {
    const std::lock_guard lock(registry().mutex);
    registry().by_address.emplace(memory->data(), memory);
  }
  return Napi::ArrayBuffer::New(env, memory->data(), bytes, [](Napi::Env, void* data) { forget(data); });
}

std::shared_ptr<const DeviceMemory> exposed_memory(const void* data) {
  const std::lock_guard lock(registry().mutex);
  const auto found = registry().by_address.find(data);
  return found == registry().by_address.end() ? nullptr : found->second;
}

}  // namespace moe
