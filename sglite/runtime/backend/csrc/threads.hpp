// Threads that take pieces of a job, for kernels that follow each other within microseconds.
//
// A worker that has nothing to do spins for a bounded time and then sleeps, so that an idle server costs nothing and a
// neighbour is not starved. The caller works too and never waits for a worker that has not begun: on a busy machine it
// does the whole job itself.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace sglite {

class Threads {
public:
    using Piece = void (*)(void* job, int64_t piece, int thread);

    // `count` threads in all, the caller's included.
    explicit Threads(int count);
    ~Threads();
    Threads(const Threads&) = delete;
    Threads& operator=(const Threads&) = delete;

    int count() const { return static_cast<int>(workers_.size()) + 1; }

    // `work(job, i, thread)` for every i below `pieces`, each once; returns when all are done. Callers take turns.
    void run(Piece work, void* job, int64_t pieces);

private:
    void serve(int thread);
    bool wait_for_job(uint32_t& seen);
    void take(int thread);

    std::vector<std::thread> workers_;
    std::mutex turn_;
    Piece work_ = nullptr;
    void* job_ = nullptr;
    int64_t pieces_ = 0;
    alignas(64) std::atomic<int64_t> next_{0};
    alignas(64) std::atomic<uint32_t> round_{0};   // changes with every job; workers sleep on it
    alignas(64) std::atomic<uint32_t> inside_{0};  // workers that may be reading the job
    std::atomic<bool> open_{false};
    std::atomic<uint32_t> asleep_{0};
    std::atomic<bool> leaving_{false};
};

}  // namespace sglite
