// Hammers the kernels' threads from several callers, for a thread sanitizer: jobs of all sizes behind each other and with
// pauses after which workers sleep, in sets of threads that come and go. Every piece must be done once, by a thread of
// the set, and be seen by the caller, whose job is gone afterwards. Says what it did; exits with 1 if it was wrong.
#include <stdint.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "threads.hpp"

namespace {

struct Job {
    std::vector<int> done;     // of each piece, not atomic: the sanitizer must know who comes after whom
    std::vector<int> by;       // of each thread of the set
    uint64_t salt;
};

void piece(void* job, int64_t i, int thread) {
    auto& j = *static_cast<Job*>(job);
    uint64_t x = j.salt + static_cast<uint64_t>(i);
    for (int k = 0; k < static_cast<int>(x % 50); k++) x = x * 6364136223846793005u + 1442695040888963407u;
    j.done[static_cast<size_t>(i)] += 1 + static_cast<int>(x == 1);
    j.by[static_cast<size_t>(thread)]++;
}

bool call(sglite::Threads& threads, int64_t pieces, uint64_t salt, int64_t& shared) {
    Job job{std::vector<int>(static_cast<size_t>(pieces)), std::vector<int>(static_cast<size_t>(threads.count())), salt};
    threads.run(piece, &job, pieces);
    int64_t sum = 0;
    for (const int n : job.by) sum += n;
    shared += sum - job.by[0];
    for (const int n : job.done)
        if (n != 1) return false;
    return sum == pieces;
}

}  // namespace

int main(int, char** arguments) {
    const int sets = std::atoi(arguments[1]), callers = 3, calls = 400;
    int64_t shared = 0, wrong = 0;
    for (int set = 0; set < sets; set++) {
        sglite::Threads threads(1 + set % 4);
        std::vector<int64_t> by_others(callers), failed(callers);
        std::vector<std::thread> running;
        for (int caller = 0; caller < callers; caller++)
            running.emplace_back([&, caller] {
                const auto own = static_cast<size_t>(caller);
                for (int i = 0; i < calls; i++) {
                    failed[own] += !call(threads, (i * 7 + caller) % 60, static_cast<uint64_t>(set + i), by_others[own]);
                    if (i % 100 == 99) std::this_thread::sleep_for(std::chrono::milliseconds(1));
                }
            });
        for (auto& thread : running) thread.join();
        for (const auto n : by_others) shared += n;
        for (const auto n : failed) wrong += n;
    }
    std::printf("%d jobs, %lld wrong, %lld pieces done by others than the caller\n", sets * callers * calls,
                static_cast<long long>(wrong), static_cast<long long>(shared));
    return wrong ? 1 : 0;
}
