// Just enough of JSON to compare values: items and names of a container that is being written, and a canonical form.
#pragma once

#include <cstddef>
#include <string>
#include <unordered_set>
#include <vector>

namespace sglite {

// A form that two JSON texts share exactly when they are the same value: numbers by value, names sorted, escapes read.
// Text that is not JSON is its own form.
std::string canonical(const char* begin, const char* end);

// Canonical items (of an array) or names (of an object) completed in the container that begins at `begin`.
std::unordered_set<std::string> completed_entries(const char* begin, const char* end);

// Reads on through JSON text and knows which containers are open.
class Containers {
public:
    explicit Containers(size_t from = 0) : at_(from) {}
    size_t at() const { return at_; }
    void read(const std::string& text, size_t until);
    // Where the innermost open container began; `otherwise` when none is open.
    size_t innermost(size_t otherwise) const { return open_.empty() ? otherwise : open_.back(); }

private:
    size_t at_;
    bool string_ = false;
    bool escape_ = false;
    std::vector<size_t> open_;
};

}  // namespace sglite
