#include "engine.hpp"

namespace sglite {
namespace {

constexpr int64_t kBlock = 16;
constexpr int64_t kPieceBytes = 64 << 10;  // of weights that come from memory: some microseconds
constexpr int64_t kTall = 24;              // rows up to which a product reads its weights once
constexpr int64_t kRowStep = 192;          // rows that share a stretch of weights in the cache

}  // namespace

void Engine::multiply(Product job) {
    const int64_t blocks = job.weight.outs / kBlock, most_blocks = most<int64_t>(1, blocks / (4 * threads.count()));
    const int64_t worth = parts(kPieceBytes, kBlock * job.weight.ins * size_of(job.weight.kind));
    job.block_step = least(parts(worth, 4) * 4, parts(most_blocks, 4) * 4);
    job.row_step = job.rows > kTall ? least(job.rows, kRowStep) : most<int64_t>(job.rows, 1);
    threads.run(kernels.product, &job, parts(blocks, job.block_step) * parts(job.rows, job.row_step));
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
