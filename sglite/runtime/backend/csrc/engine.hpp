// What computes: kernels of one instruction set with threads and room of their own. Every operation is cut into pieces
// here and handed to the threads; whoever calls an operation has the `turn`.
#pragma once

#include <mutex>
#include <vector>

#include "kernels.hpp"
#include "threads.hpp"

namespace sglite {

struct Plan;

struct Engine {
    Engine(const Kernels& table, int count) : kernels(table), threads(count), scratch(count) {}

    std::mutex turn;
    const Kernels& kernels;
    Threads threads;
    std::vector<std::vector<char>> scratch;  // of each thread
    std::vector<char> tiles;

    // Sizes of pieces are set here.
    void multiply(Product job);
    void normalise(Norm job);
    void rotate(Rotate job);
    void activate(Gated job);
    // `job` without what is known from the plan: tables, rows, pieces and room.
    void attend(Attention job, Plan& plan);
};

inline int64_t parts(int64_t whole, int64_t step) { return (whole + step - 1) / step; }

template <class T>
T least(T a, T b) {
    return a < b ? a : b;
}

template <class T>
T most(T a, T b) {
    return a > b ? a : b;
}

inline int64_t size_of(int32_t type) { return type ? 2 : 4; }

}  // namespace sglite
