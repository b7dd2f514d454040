#include "engine.hpp"

namespace sglite {
namespace {

constexpr int64_t kBlock = 16;
constexpr int64_t kPieceBytes = 64 << 10;  // of weights that come from memory: some microseconds
constexpr int64_t kTall = 24;              // rows up to which a product reads its weights once
constexpr int64_t kLine = 64;

// Rows so that a piece is worth handing out.
int64_t row_step(int64_t rows, int64_t numbers, int threads) {
    const int64_t worth = most<int64_t>(1, 8192 / most<int64_t>(numbers, 1));
    return most(worth, parts(rows, 4 * threads));
}

}  // namespace

void Engine::multiply(Product job) {
    const int64_t blocks = job.weight.outs / kBlock, most_blocks = most<int64_t>(1, blocks / (4 * threads.count()));
    const int64_t worth = parts(kPieceBytes, bytes_of(kBlock * job.weight.ins, job.weight.kind));
    job.block_step = least(parts(worth, 4) * 4, parts(most_blocks, 4) * 4);
    job.row_step = job.rows > kTall ? least(job.rows, kRowStep) : most<int64_t>(job.rows, 1);
    const int64_t pieces = parts(blocks, job.block_step) * parts(job.rows, job.row_step);
    if (job.weight.kind < 2) return threads.run(kernels.product, &job, pieces);
    const Inputs made = prepare(job);
    job.inputs = &made;
    threads.run(kernels.codes, &job, pieces);
}

Inputs Engine::prepare(const Product& job) {
    const Weight& weight = job.weight;
    const bool whole = weight.kind == 2;
    Inputs made{job.x, job.x_stride, job.rows, weight.ins, weight.group, weight.type, weight.kind};
    // A line more than a row has: rows a power of two apart would get into each other's way in the cache.
    made.stride = whole ? parts(weight.ins * kernels.code_bytes, kLine) * kLine + kLine : 0;
    const int64_t table = job.rows * (weight.ins / weight.group);
    const int64_t needed = kLine + job.rows * made.stride + 2 * table * 4;
    if (static_cast<int64_t>(inputs.size()) < needed) inputs.resize(needed);
    made.codes = inputs.data() + kLine - reinterpret_cast<uintptr_t>(inputs.data()) % kLine;
    made.scales = reinterpret_cast<float*>(made.codes + job.rows * made.stride);
    made.sums = made.scales + table;
    made.row_step = row_step(job.rows, weight.ins, threads.count());
    if (whole || weight.zeros) threads.run(kernels.inputs, &made, parts(job.rows, made.row_step));
    return made;
}

void Engine::normalise(Norm job) {
    job.row_step = row_step(job.rows, job.size, threads.count());
    threads.run(kernels.norm, &job, parts(job.rows, job.row_step));
}

void Engine::rotate(Rotate job) {
    job.row_step = row_step(job.tokens, (job.heads + 2 * job.kv_heads) * job.dim, threads.count());
    threads.run(kernels.rotate, &job, parts(job.tokens, job.row_step));
}

void Engine::activate(Gated job) {
    job.row_step = row_step(job.rows, job.size, threads.count());
    threads.run(kernels.gated, &job, parts(job.rows, job.row_step));
}

}  // namespace sglite
