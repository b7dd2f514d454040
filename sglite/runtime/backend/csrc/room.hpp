// Memory that grows with what is asked of it, and stays.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sglite {

// Begins on a line of the cache; a large one lies on huge pages, so that rows far apart cost few page walks.
class Room {
public:
    Room() = default;
    Room(const Room&) = delete;
    Room& operator=(const Room&) = delete;
    ~Room();

    // So many bytes, whatever they held before.
    char* at_least(int64_t bytes) {
        if (bytes > size_) grow(bytes);
        return data_;
    }

private:
    void grow(int64_t bytes);

    char* data_ = nullptr;
    int64_t size_ = 0;
};

}  // namespace sglite
