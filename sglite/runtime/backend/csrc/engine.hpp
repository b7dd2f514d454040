// What computes: kernels of one instruction set with threads and room of their own. Every operation is cut into pieces
// here and handed to the threads; whoever calls an operation has the `turn`.
#pragma once

#include <mutex>
#include <vector>

#include "kernels.hpp"
#include "mixers.hpp"
#include "room.hpp"
#include "threads.hpp"

namespace sglite {

struct Plan;

// What lies between the phases of experts.
struct ExpertsRoom {
    std::vector<int64_t> firsts, next;
    std::vector<int32_t> order, places;
    std::vector<ExpertPiece> pieces;
    Room hidden, results, scratch;
};

struct Engine {
    Engine(const Kernels& table, int count) : kernels(table), threads(count), scratch(count) {}

    std::mutex turn;
    const Kernels& kernels;
    Threads threads;
    std::vector<std::vector<char>> scratch;  // of each thread
    Room tiles, arranged;
    Room layers;  // what a step's layers use one after another
    ExpertsRoom experts;
    std::vector<LatentPiece> latent_pieces;
    Room ready;                // keys and values for tiles of queries
    std::vector<float> found;  // by pieces of attention, of tokens that have parts
    int64_t slots_read = 0;    // keys that attention has read, of all KV heads of a layer
    Room inputs;               // of products with codes

    // Sizes of pieces are set here.
    void multiply(Product job);
    // And the activation of its result, which is not written where one kernel does both.
    void multiply_gated(Product job, Gated after);
    // `weight` [outs, ins] of a kind, or scales as float32, from rows one behind the other to packed, in place, or back.
    void arrange(void* weight, int64_t outs, int64_t ins, int32_t kind, bool back);
    // The greatest product of each row and the first place that it has; tops NaN where there is one, ids 0 then.
    void find_greatest(Product product, int64_t* ids, float* tops);
    void normalise(Norm job);
    void rotate(Rotate job);
    void activate(Gated job);
    // `job` without what is known from the plan: tables, rows, pieces and room.
    void attend(Attention job, Plan& plan);
    void choose(Route job);
    // `job` without order, pieces and room; `ids` [tokens, chosen].
    void mix(Experts job, const int64_t* ids);
    void multiply_each(Each job);
    void attend_latents(Latents job, Plan& plan);
    void convolve(Conv job);
    void remember(Delta job);
    void normalise_gated(GatedNorm job);
    void sample(Sample job);

private:
    Inputs prepare(const Product& job);
    // The same for experts: their x, or what is between their products.
    const Inputs* prepare(const Experts& job, const void* x, int64_t stride, int64_t rows, const Matrices& weights,
                          Inputs& made);
    void multiply_codes(Product& job);
    // Cuts a product into pieces and arranges its x where that is wanted.
    void lay_out(Product& job);
    int64_t pieces(const Product& job) const;
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

// Rows of some numbers each so that a piece of them is worth handing out.
inline int64_t rows_at_once(int64_t rows, int64_t numbers, int threads) {
    return most(most<int64_t>(1, 8192 / most<int64_t>(numbers, 1)), parts(rows, 4 * threads));
}

// Bytes of so many numbers of a weight's kind.
inline int64_t bytes_of(int64_t numbers, int32_t kind) { return kind < 2 ? numbers * size_of(kind) : numbers / (kind - 1); }

// Rows `ids` of a packed weight in its type: [count, ins].
void read_rows(const Weight& weight, const int64_t* ids, int64_t count, void* out);

}  // namespace sglite
