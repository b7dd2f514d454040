// How the work on experts is cut.
#include "engine.hpp"
#include "mixers.hpp"

namespace sglite {
namespace {

constexpr int64_t kBlock = 16;
constexpr int64_t kPieceBytes = 64 << 10;       // of weights, see engine.cpp
constexpr int64_t kRoomNumbers = int64_t{1} << 24;  // between the phases; more tokens take turns

// Pairs of token and choice, sorted by expert, in the order of the tokens.
void sort_pairs(ExpertsRoom& room, const int64_t* ids, int64_t pairs, int64_t experts) {
    room.firsts.assign(experts + 1, 0);
    for (int64_t i = 0; i < pairs; i++) room.firsts[ids[i] + 1]++;
    for (int64_t e = 0; e < experts; e++) room.firsts[e + 1] += room.firsts[e];
    room.order.resize(pairs);
    room.places.resize(pairs);
    std::vector<int64_t>& next = room.next;
    next.assign(room.firsts.begin(), room.firsts.end() - 1);
    for (int64_t i = 0; i < pairs; i++) {
        const int64_t place = next[ids[i]]++;
        room.order[place] = static_cast<int32_t>(i);
        room.places[i] = static_cast<int32_t>(place);
    }
    room.pieces.clear();
    for (int32_t e = 0; e < experts; e++)
        for (int64_t first = room.firsts[e]; first < room.firsts[e + 1]; first += kExpertRows)
            room.pieces.push_back({e, static_cast<int32_t>(least(kExpertRows, room.firsts[e + 1] - first)), first});
}

// Stretches of blocks so that the threads have enough to share, in steps of whole panels.
void cut(Experts& job, int64_t blocks, int64_t block_bytes, int threads) {
    const int64_t wanted = threads == 1 ? 1 : parts(8 * threads, job.num_pieces);
    const int64_t worth = most(parts(blocks, wanted), parts(kPieceBytes, block_bytes));
    job.block_step = parts(worth, kExpertBlocks) * kExpertBlocks;
    job.columns = parts(blocks, job.block_step);
}

}  // namespace

void Engine::choose(Route job) {
    job.row_step = rows_at_once(job.tokens, job.experts * (job.top_k + 4), threads.count());
    threads.run(kernels.route, &job, parts(job.tokens, job.row_step));
}

void Engine::mix(Experts job, const int64_t* ids) {
    const int64_t numbers = job.down.ins + job.down.outs, size = size_of(job.type);
    const int64_t at_once = most<int64_t>(1, kRoomNumbers / (numbers * job.chosen));
    const int64_t tables = job.gate_up.kind < 2 ? 0 : 2 * (job.gate_up.ins / job.gate_up.group) * 4;
    const int64_t row = parts(job.gate_up.ins * most(size, kernels.code_bytes), 64) * 64 + 64 + tables;
    job.scratch_size = parts(kExpertRows * (row + 2 * kExpertBlocks * kBlock * 4) + 4 * 64, 64) * 64;
    job.scratch = experts.scratch.at_least(job.scratch_size * threads.count());
    const int64_t all = job.tokens;
    const auto* x = static_cast<const char*>(job.x);
    auto* out = static_cast<char*>(job.out);
    const float* shares = job.shares;
    for (int64_t first = 0; first < all; first += at_once) {
        job.tokens = least(at_once, all - first);
        job.x = x + first * job.x_stride * size;
        job.out = out + first * job.down.outs * size;
        job.shares = shares + first * job.chosen;
        const int64_t pairs = job.tokens * job.chosen;
        sort_pairs(experts, ids + first * job.chosen, pairs, job.down.count);
        job.order = experts.order.data(), job.places = experts.places.data();
        job.pieces = experts.pieces.data(), job.num_pieces = static_cast<int64_t>(experts.pieces.size());
        job.hidden = experts.hidden.at_least(pairs * job.down.ins * size);
        job.results = experts.results.at_least(pairs * job.down.outs * size);
        Inputs made;
        job.inputs = prepare(job, job.x, job.x_stride, job.tokens, job.gate_up, made);
        cut(job, job.down.ins / kBlock, bytes_of(2 * kBlock * job.gate_up.ins, job.gate_up.kind), threads.count());
        threads.run(kernels.experts_up, &job, job.num_pieces * job.columns);
        job.inputs = prepare(job, job.hidden, job.down.ins, pairs, job.down, made);
        cut(job, job.down.outs / kBlock, bytes_of(kBlock * job.down.ins, job.down.kind), threads.count());
        threads.run(kernels.experts_down, &job, job.num_pieces * job.columns);
        job.row_step = rows_at_once(job.tokens, job.chosen * job.down.outs, threads.count());
        threads.run(kernels.experts_mix, &job, parts(job.tokens, job.row_step));
    }
}

const Inputs* Engine::prepare(const Experts& job, const void* x, int64_t stride, int64_t rows, const Matrices& weights,
                              Inputs& made) {
    if (weights.kind < 2) return nullptr;
    Product product{};
    product.x = x, product.x_stride = stride, product.rows = rows;
    product.weight = weights.one(0);
    product.out_type = job.type;
    made = prepare(product);
    return &made;
}

void Engine::multiply_each(Each job) {
    const int64_t blocks = job.weights.outs / kBlock, block_bytes = kBlock * job.weights.ins * size_of(job.weights.kind);
    const int64_t wanted = threads.count() == 1 ? 1 : parts(8 * threads.count(), job.weights.count);
    const int64_t worth = most(parts(blocks, wanted), parts(kPieceBytes, block_bytes));
    job.block_step = least(blocks, parts(worth, 4) * 4);
    job.row_step = most<int64_t>(1, least(job.rows, kExpertRows));
    threads.run(kernels.each, &job, parts(blocks, job.block_step) * job.weights.count * parts(job.rows, job.row_step));
}

}  // namespace sglite
