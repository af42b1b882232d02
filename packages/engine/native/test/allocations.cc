/*
 * Counts what an addon allocates, for tests: watch(fileName) redirects the memory functions that a loaded shared object
 * imports to functions that count and then do the same; numAllocations() says how often they were called since. Each
 * object has a table of its own imports (the ELF specification's global offset table), so what Node and V8 allocate does
 * not count.
 */
#include <elf.h>
#include <link.h>
#include <napi.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <moe/napi_convert.hpp>
#include <new>
#include <string>

namespace moe {
namespace {

std::atomic<int64_t> num_allocations{0};

void count() { num_allocations.fetch_add(1, std::memory_order_relaxed); }

void* counted_malloc(size_t size) {
  count();
  return std::malloc(size);
}
void* counted_calloc(size_t number, size_t size) {
  count();
  return std::calloc(number, size);
}
void* counted_realloc(void* pointer, size_t size) {
  count();
  return std::realloc(pointer, size);
}
void* counted_aligned_alloc(size_t alignment, size_t size) {
  count();
  return std::aligned_alloc(alignment, size);
}
int counted_posix_memalign(void** pointer, size_t alignment, size_t size) {
  count();
  return posix_memalign(pointer, alignment, size);
}
void* counted_mmap(void* address, size_t length, int protection, int flags, int file, off_t offset) {
  count();
  return mmap(address, length, protection, flags, file, offset);
}
void* counted_new(size_t size) {
  count();
  return ::operator new(size);
}
void* counted_aligned_new(size_t size, std::align_val_t alignment) {
  count();
  return ::operator new(size, alignment);
}

struct Import {
  const char* symbol;
  void* counted;
};

const Import kImports[] = {
    {"malloc", reinterpret_cast<void*>(counted_malloc)},
    {"calloc", reinterpret_cast<void*>(counted_calloc)},
    {"realloc", reinterpret_cast<void*>(counted_realloc)},
    {"aligned_alloc", reinterpret_cast<void*>(counted_aligned_alloc)},
    {"posix_memalign", reinterpret_cast<void*>(counted_posix_memalign)},
    {"mmap", reinterpret_cast<void*>(counted_mmap)},
    {"_Znwm", reinterpret_cast<void*>(counted_new)}, /* operator new and new[], as the Itanium ABI calls them */
    {"_Znam", reinterpret_cast<void*>(counted_new)},
    {"_ZnwmSt11align_val_t", reinterpret_cast<void*>(counted_aligned_new)},
    {"_ZnamSt11align_val_t", reinterpret_cast<void*>(counted_aligned_new)},
};

#if defined(__aarch64__)
constexpr uint32_t kJumpSlot = R_AARCH64_JUMP_SLOT, kGlobalData = R_AARCH64_GLOB_DAT;
#else
constexpr uint32_t kJumpSlot = R_X86_64_JUMP_SLOT, kGlobalData = R_X86_64_GLOB_DAT;
#endif

/* What the dynamic section says of one object. */
struct Imports {
  const ElfW(Rela) * relocations[2] = {};
  size_t sizes[2] = {};
  const ElfW(Sym) * symbols = nullptr;
  const char* names = nullptr;
};

Imports read_dynamic(const ElfW(Dyn) * entry) {
  Imports imports;
  for (; entry->d_tag != DT_NULL; entry++) {
    switch (entry->d_tag) {
      case DT_JMPREL:
        imports.relocations[0] = reinterpret_cast<const ElfW(Rela)*>(entry->d_un.d_ptr);
        break;
      case DT_PLTRELSZ:
        imports.sizes[0] = entry->d_un.d_val;
        break;
      case DT_RELA:
        imports.relocations[1] = reinterpret_cast<const ElfW(Rela)*>(entry->d_un.d_ptr);
        break;
      case DT_RELASZ:
        imports.sizes[1] = entry->d_un.d_val;
        break;
      case DT_SYMTAB:
        imports.symbols = reinterpret_cast<const ElfW(Sym)*>(entry->d_un.d_ptr);
        break;
      case DT_STRTAB:
        imports.names = reinterpret_cast<const char*>(entry->d_un.d_ptr);
        break;
      default:
        break;
    }
  }
  return imports;
}

/* The table may have been made read-only after loading. */
void redirect(void** slot, void* target) {
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t begin = reinterpret_cast<uintptr_t>(slot) / page * page;
  mprotect(reinterpret_cast<void*>(begin), page, PROT_READ | PROT_WRITE);
  __atomic_store_n(slot, target, __ATOMIC_RELEASE);
}

int redirect_imports(ElfW(Addr) base, const Imports& imports) {
  int redirected = 0;
  for (int table = 0; table < 2; table++) {
    const size_t number = imports.sizes[table] / sizeof(ElfW(Rela));
    for (size_t i = 0; i < number; i++) {
      const ElfW(Rela)& relocation = imports.relocations[table][i];
      const auto type = static_cast<uint32_t>(ELF64_R_TYPE(relocation.r_info));
      if (type != kJumpSlot && type != kGlobalData) continue;
      const char* name = imports.names + imports.symbols[ELF64_R_SYM(relocation.r_info)].st_name;
      for (const Import& import : kImports) {
        if (std::strcmp(name, import.symbol) != 0) continue;
        redirect(reinterpret_cast<void**>(base + relocation.r_offset), import.counted);
        redirected++;
      }
    }
  }
  return redirected;
}

struct Watched {
  std::string file_name;
  int redirected = 0;
};

int visit(dl_phdr_info* object, size_t, void* data) {
  auto* watched = static_cast<Watched*>(data);
  const std::string path = object->dlpi_name;
  if (path.substr(path.rfind('/') + 1) != watched->file_name) return 0;
  for (int i = 0; i < object->dlpi_phnum; i++) {
    const ElfW(Phdr)& segment = object->dlpi_phdr[i];
    if (segment.p_type != PT_DYNAMIC) continue;
    const auto* dynamic = reinterpret_cast<const ElfW(Dyn)*>(object->dlpi_addr + segment.p_vaddr);
    watched->redirected += redirect_imports(object->dlpi_addr, read_dynamic(dynamic));
  }
  return 1;
}

/* watch(fileName): how many imports were redirected; 0 when no such object is loaded. Once per object. */
Napi::Value watch(const Napi::CallbackInfo& info) {
  Watched watched{get_string(info[0], "fileName")};
  dl_iterate_phdr(visit, &watched);
  return Napi::Number::New(info.Env(), watched.redirected);
}

Napi::Value allocations(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), static_cast<double>(num_allocations.load()));
}

}  // namespace
}  // namespace moe

static Napi::Object init_module(Napi::Env env, Napi::Object exports) {
  exports.Set("watch", Napi::Function::New(env, moe::watch));
  exports.Set("numAllocations", Napi::Function::New(env, moe::allocations));
  return exports;
}

NODE_API_MODULE(engine_test_allocations, init_module)
