#include "threads.hpp"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>

namespace sglite {
namespace {

constexpr auto kSpin = std::chrono::microseconds(60);  // about what lies between two kernels of a step
constexpr int kPauses = 32;                            // between two looks at the clock

void relax() { __builtin_ia32_pause(); }

void sleep_on(std::atomic<uint32_t>& word, uint32_t value) {
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
}

void wake_all(std::atomic<uint32_t>& word) {
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE_PRIVATE, 1 << 30, nullptr, nullptr, 0);
}

// Whether `done` came true within the time that spinning is worth.
template <class Done>
bool spin(Done done) {
    const auto end = std::chrono::steady_clock::now() + kSpin;
    do {
        for (int i = 0; i < kPauses; i++) {
            if (done()) return true;
            relax();
        }
    } while (std::chrono::steady_clock::now() < end);
    return false;
}

}  // namespace

Threads::Threads(int count) {
    for (int thread = 1; thread < count; thread++) workers_.emplace_back([this, thread] { serve(thread); });
}

Threads::~Threads() {
    leaving_ = true;
    round_.fetch_add(1);
    wake_all(round_);
    for (auto& worker : workers_) worker.join();
}

void Threads::run(Piece work, void* job, int64_t pieces) {
    std::lock_guard<std::mutex> lock(turn_);
    if (workers_.empty() || pieces <= 1) {
        for (int64_t i = 0; i < pieces; i++) work(job, i, 0);
        return;
    }
    work_ = work;
    job_ = job;
    pieces_ = pieces;
    next_.store(0);
    open_.store(true);
    round_.fetch_add(1);
    if (asleep_.load() > 0) wake_all(round_);
    take(0);
    // Nothing is left to take: whoever comes now finds the job closed, and only those inside are waited for.
    open_.store(false);
    while (!spin([this] { return inside_.load() == 0; })) {
        const uint32_t some = inside_.load();
        if (some != 0) sleep_on(inside_, some);
    }
}

void Threads::take(int thread) {
    for (int64_t i = next_.fetch_add(1); i < pieces_; i = next_.fetch_add(1)) work_(job_, i, thread);
}

void Threads::serve(int thread) {
    uint32_t seen = 0;
    while (wait_for_job(seen)) {
        inside_.fetch_add(1);
        if (open_.load()) take(thread);
        inside_.fetch_sub(1);
        if (!open_.load()) wake_all(inside_);
    }
}

bool Threads::wait_for_job(uint32_t& seen) {
    const auto changed = [this, &seen] { return round_.load() != seen; };
    if (!spin(changed)) {
        asleep_.fetch_add(1);
        while (!changed()) sleep_on(round_, seen);
        asleep_.fetch_sub(1);
    }
    seen = round_.load();
    return !leaving_.load();
}

}  // namespace sglite
