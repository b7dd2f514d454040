#include "engine.hpp"

#include <cmath>
#include <limits>

namespace sglite {
namespace {

constexpr int64_t kBlock = 16;
constexpr int64_t kPieceBytes = 64 << 10;  // of weights that come from memory: some microseconds
constexpr int64_t kRowBytes = 384 << 10;   // of rows that stay in the cache while they meet a stretch of weights
constexpr int64_t kRowStep = 96;           // rows that leave none over, whatever is computed at once: 6, 12 or 32
constexpr int64_t kStripPieceBytes = 256 << 10;  // the same with strips for tiles: the next blocks are fetched meanwhile
constexpr int64_t kPanelBytes = 1 << 20, kLeastPanel = 192;  // and with fewer rows weights come too slowly
constexpr int64_t kArrangeNumbers = 8192;  // of x that are worth handing out
constexpr int64_t kFewRows = 24;           // that a product with codes reads its weights once for
constexpr int64_t kLine = 64;
constexpr int64_t kLists = 6;  // of a row's numbers, that sampling has room for

// Rows so that a piece is worth handing out.
int64_t row_step(int64_t rows, int64_t numbers, int threads) {
    const int64_t worth = most<int64_t>(1, 8192 / most<int64_t>(numbers, 1));
    return most(worth, parts(rows, 4 * threads));
}

int64_t result_blocks(const Product& job) { return job.weight.outs / kBlock / (job.gated ? 2 : 1); }

}  // namespace

void Engine::lay_out(Product& job) {
    const Cut cut = kernels.cut(job.rows, job.weight.ins, job.weight.kind);
    const int64_t blocks = result_blocks(job), most_blocks = most<int64_t>(1, blocks / (4 * threads.count()));
    const int64_t row = job.weight.ins * size_of(job.weight.kind);  // bytes
    const int64_t worth = parts(cut.strip ? kStripPieceBytes : kPieceBytes, kBlock * row);
    const int64_t side = job.gated ? 1 : cut.blocks;
    job.block_step = least(parts(worth, cut.blocks), parts(most_blocks, side)) * side;
    const int64_t together = cut.strip ? least(cut.panel, most(kLeastPanel, kPanelBytes / row / cut.strip * cut.strip))
                                       : most(kRowStep, kRowBytes / row / kRowStep * kRowStep);
    job.row_step = most<int64_t>(1, least(job.rows, together));
    job.groups = cut.groups;
    job.strip = cut.strip;
    if (cut.groups == 0) return;
    const int64_t rows = cut.strip ? cut.strip : parts(job.rows, cut.groups);
    job.row_step = least(cut.groups, cut.strip ? together / rows : parts(together, rows));
    job.step_step = parts(kArrangeNumbers / rows, kBlock) * kBlock;
    job.arranged = arranged.at_least(job.rows * job.weight.ins * cut.number);
    const int64_t steps = job.weight.ins * size_of(job.weight.kind) / 4;
    threads.run(kernels.arrange, &job, cut.groups * parts(steps, job.step_step));
}

int64_t Engine::pieces(const Product& job) const {
    return parts(result_blocks(job), job.block_step) * parts(job.groups ? job.groups : job.rows, job.row_step);
}

void Engine::multiply(Product job) {
    if (job.weight.kind >= 2) return multiply_codes(job);
    lay_out(job);
    threads.run(kernels.product, &job, pieces(job));
}

void Engine::multiply_gated(Product job, Gated after) {
    const bool halves = job.weight.kind == 1 && job.weight.outs == 2 * after.size && after.size % kBlock == 0;
    if (halves && after.type && kernels.cut(job.rows, job.weight.ins, job.weight.kind).strip) {
        job.gated = after.activation + 1;
        job.out = after.out, job.out_stride = after.out_stride;
        return multiply(job);
    }
    multiply(job);
    activate(after);
}

void Engine::find_greatest(Product product, int64_t* ids, float* tops) {
    lay_out(product);
    const int64_t count = threads.count(), rows = product.rows;
    const int64_t each = product.strip ? product.strip : product.groups ? parts(rows, product.groups) : 1;
    const int64_t room = product.row_step * each * product.block_step * kBlock;
    std::vector<float> sums(count * room), found(count * rows, -std::numeric_limits<float>::infinity());
    std::vector<int64_t> places(count * rows, std::numeric_limits<int64_t>::max());
    Greatest job{product, sums.data(), room, found.data(), places.data()};
    threads.run(kernels.greatest, &job, pieces(product));
    for (int64_t row = 0; row < rows; row++) {
        float top = found[row];
        int64_t id = places[row];
        for (int64_t at = row + rows; at < count * rows; at += rows) {
            if (std::isnan(top) || found[at] < top || (found[at] == top && places[at] > id)) continue;
            top = found[at];
            id = places[at];
        }
        tops[row] = top;
        ids[row] = std::isnan(top) ? 0 : id;
    }
}

// Codes are computed four blocks side by side; few rows meet a stretch of them once.
void Engine::multiply_codes(Product& job) {
    const int64_t blocks = job.weight.outs / kBlock, most_blocks = most<int64_t>(1, blocks / (4 * threads.count()));
    const int64_t worth = parts(kPieceBytes, bytes_of(kBlock * job.weight.ins, job.weight.kind));
    job.block_step = least(parts(worth, 4) * 4, parts(most_blocks, 4) * 4);
    job.row_step = job.rows > kFewRows ? least(job.rows, kCodeRowStep) : most<int64_t>(job.rows, 1);
    const Inputs made = prepare(job);
    job.inputs = &made;
    threads.run(kernels.codes, &job, parts(blocks, job.block_step) * parts(job.rows, job.row_step));
}

Inputs Engine::prepare(const Product& job) {
    const Weight& weight = job.weight;
    const bool whole = weight.kind == 2;
    Inputs made{job.x, job.x_stride, job.rows, weight.ins, weight.group, weight.type, weight.kind};
    // A line more than a row has: rows a power of two apart would get into each other's way in the cache.
    made.stride = whole ? parts(weight.ins * kernels.code_bytes, kLine) * kLine + kLine : 0;
    const int64_t table = job.rows * (weight.ins / weight.group);
    made.codes = inputs.at_least(job.rows * made.stride + 2 * table * 4);
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

void Engine::sample(Sample job) {
    job.room_size = kLists * (parts(job.width, kBlock) + 2) * kBlock;
    job.room = reinterpret_cast<float*>(tiles.at_least(job.room_size * threads.count() * 4));
    job.row_step = row_step(job.rows, job.width, threads.count());
    threads.run(kernels.sample, &job, parts(job.rows, job.row_step));
}

}  // namespace sglite
