#include "room.hpp"

#include <sys/mman.h>

#include <cstdlib>
#include <new>

namespace sglite {
namespace {

constexpr int64_t kLine = 64, kHugePage = 2 << 20;

}  // namespace

Room::~Room() { std::free(data_); }

void Room::grow(int64_t bytes) {
    const int64_t page = bytes < kHugePage ? kLine : kHugePage;
    const int64_t wanted = bytes + bytes / 8, size = (wanted + page - 1) / page * page;
    std::free(data_);
    data_ = nullptr, size_ = 0;
    void* made = std::aligned_alloc(page, size);
    if (!made) throw std::bad_alloc();
    if (page == kHugePage) madvise(made, size, MADV_HUGEPAGE);
    data_ = static_cast<char*>(made), size_ = size;
}

}  // namespace sglite
