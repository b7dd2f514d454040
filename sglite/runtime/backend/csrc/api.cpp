// What Python calls: a C interface over raw pointers. Every call may be made without the GIL; calls on one handle take
// turns. Shapes are checked by the caller.
#include <sys/mman.h>

#include <cstring>
#include <vector>

#include "kernels.hpp"
#include "threads.hpp"

#define SG_API extern "C" __attribute__((visibility("default")))

extern const sglite::Kernels sg_avx2, sg_avx512, sg_avx512_bf16;

namespace {

using namespace sglite;

constexpr int64_t kBlock = 16;
constexpr int64_t kPieceBytes = 64 << 10;  // of weights that come from memory: some microseconds
constexpr int64_t kTall = 24;              // rows up to which a product reads its weights once
constexpr int64_t kRowStep = 192;          // rows that share a stretch of weights in the cache

struct Engine {
    Engine(const Kernels& table, int count) : kernels(table), threads(count), scratch(count) {}

    const Kernels& kernels;
    Threads threads;
    std::vector<std::vector<char>> scratch;  // of each thread
    std::vector<char> tiles;
};

int64_t parts(int64_t whole, int64_t step) { return (whole + step - 1) / step; }

template <class T>
T least(T a, T b) {
    return a < b ? a : b;
}

template <class T>
T most(T a, T b) {
    return a > b ? a : b;
}

int64_t size_of(int32_t type) { return type ? 2 : 4; }

// One block between its two forms, in place: as rows [16][ins], and packed in steps of 4 bytes [ins / n][16].
struct Packing {
    char* weight;
    int64_t step, blocks;  // numbers of 4 bytes in a row; blocks
    bool back;
    std::vector<std::vector<char>>* scratch;
};

void pack_block(void* job, int64_t block, int thread) {
    const auto& p = *static_cast<Packing*>(job);
    auto& room = (*p.scratch)[thread];
    const int64_t numbers = kBlock * p.step;
    room.resize(numbers * 4);
    auto* to = reinterpret_cast<uint32_t*>(p.weight) + block * numbers;
    auto* from = reinterpret_cast<uint32_t*>(room.data());
    std::memcpy(from, to, numbers * 4);
    for (int64_t first = 0; first < p.step; first += kBlock)  // squares of whole cache lines
        for (int64_t lane = 0; lane < kBlock; lane++) {
            const int64_t end = least(first + kBlock, p.step);
            if (p.back)
                for (int64_t i = first; i < end; i++) to[lane * p.step + i] = from[i * kBlock + lane];
            else
                for (int64_t i = first; i < end; i++) to[i * kBlock + lane] = from[lane * p.step + i];
        }
}

// The pieces of attention for one kind of layer.
struct Cut {
    int64_t heads, kv_heads, v_dim, window;
    std::vector<AttentionPiece> pieces;
};

struct Plan {
    std::vector<int32_t> tables;
    std::vector<int64_t> table_from, query_from, starts;
    int64_t page_size;
    std::vector<Cut> cuts;

    int64_t rows() const { return static_cast<int64_t>(starts.size()); }
    const Cut& cut(int64_t heads, int64_t kv_heads, int64_t v_dim, int64_t window, int threads);
};

const Cut& Plan::cut(int64_t heads, int64_t kv_heads, int64_t v_dim, int64_t window, int threads) {
    for (const auto& known : cuts)
        if (known.heads == heads && known.kv_heads == kv_heads && known.v_dim == v_dim && known.window == window)
            return known;
    Cut made{heads, kv_heads, v_dim, window, {}};
    const int64_t group = heads / kv_heads;
    // A page is read in one go where rows alone keep the threads busy; few rows are shared out by heads.
    const int64_t wanted = parts(4 * threads, most<int64_t>(rows(), 1));
    int64_t together = least(parts(kv_heads, wanted), most<int64_t>(1, kStateFloats / (group * v_dim)));
    for (int32_t row = 0; row < rows(); row++) {
        const int64_t queries = query_from[row + 1] - query_from[row];
        const bool few = queries <= kFewQueries;
        const int64_t at_once = few ? queries : most<int64_t>(1, kTileRows / group);
        const int64_t kv_step = few ? together : 1;
        // The last queries see most, so they come first.
        for (int64_t tile = parts(queries, most<int64_t>(at_once, 1)) - 1; tile >= 0; tile--)
            for (int64_t kv = 0; kv < kv_heads; kv += kv_step)
                made.pieces.push_back({row, static_cast<int32_t>(kv), static_cast<int32_t>(least(kv_step, kv_heads - kv)),
                                       static_cast<int32_t>(tile * at_once),
                                       static_cast<int32_t>(least(at_once, queries - tile * at_once))});
    }
    cuts.push_back(std::move(made));
    return cuts.back();
}

int64_t tile_bytes(int64_t dim, int64_t v_dim) {
    const int64_t numbers = kTileRows * dim + kTileSlots * (dim + v_dim) + 2 * kTileRows * kTileSlots +
                            2 * kTileRows * v_dim + 4 * kTileRows;
    return (numbers * 4 + 16 * 64 + 63) / 64 * 64;
}

// Rows so that a piece is worth handing out.
int64_t row_step(int64_t rows, int64_t numbers, int threads) {
    const int64_t worth = most<int64_t>(1, 8192 / most<int64_t>(numbers, 1));
    return most(worth, parts(rows, 4 * threads));
}

}  // namespace

// Bits of the instruction sets that this processor has: 1 AVX2, 2 AVX512, 4 AVX512 with bfloat16.
SG_API int sg_levels() {
    __builtin_cpu_init();
    int levels = 0;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) levels |= 1;
    const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if ((levels & 1) && wide) levels |= 2;
    if ((levels & 2) && __builtin_cpu_supports("avx512bf16")) levels |= 4;
    return levels;
}

SG_API void* sg_new(int level, int threads) {
    return new Engine(level == 4 ? sg_avx512_bf16 : level == 2 ? sg_avx512 : sg_avx2, threads);
}

SG_API void sg_free(void* engine) { delete static_cast<Engine*>(engine); }

// Asks for huge pages, which memory gets when it is first written to: fewer page walks where it is read end to end.
SG_API void sg_huge(void* data, int64_t bytes) {
    const uintptr_t page = 2 << 20, first = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
    const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / page * page;
    if (end > first) madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
}

SG_API void sg_pack(void* engine, void* weight, int64_t outs, int64_t ins, int type, int back) {
    auto& e = *static_cast<Engine*>(engine);
    Packing job{static_cast<char*>(weight), ins * size_of(type) / 4, outs / kBlock, back != 0, &e.scratch};
    e.threads.run(pack_block, &job, job.blocks);
}

SG_API void sg_product(void* engine, const void* x, int64_t x_stride, const void* weight, const void* bias, void* out,
                       int64_t rows, int64_t ins, int64_t outs, int type, int out_type) {
    auto& e = *static_cast<Engine*>(engine);
    Product job{x, x_stride, weight, bias, out, rows, ins, outs, type, out_type, rows, 1};
    const int64_t blocks = outs / kBlock, most_blocks = most<int64_t>(1, blocks / (4 * e.threads.count()));
    const int64_t worth = parts(kPieceBytes, kBlock * ins * size_of(type));
    job.block_step = least(parts(worth, 4) * 4, parts(most_blocks, 4) * 4);
    if (rows > kTall) job.row_step = least(rows, kRowStep);
    e.threads.run(e.kernels.product, &job, parts(blocks, job.block_step) * parts(rows, job.row_step));
}

// Rows `ids` of a packed weight: [count, ins].
SG_API void sg_embedding(const int64_t* ids, int64_t count, const void* weight, int64_t ins, int type, void* out) {
    const int64_t steps = ins * size_of(type) / 4;
    auto* to = static_cast<uint32_t*>(out);
    for (int64_t i = 0; i < count; i++) {
        const auto* from = static_cast<const uint32_t*>(weight) + ids[i] / kBlock * kBlock * steps + ids[i] % kBlock;
        for (int64_t s = 0; s < steps; s++) to[i * steps + s] = from[s * kBlock];
    }
}

SG_API void* sg_plan_new(int64_t rows, const int32_t* tables, const int64_t* table_from, const int64_t* query_from,
                         const int64_t* starts, int64_t page_size) {
    auto* plan = new Plan;
    plan->tables.assign(tables, tables + table_from[rows]);
    plan->table_from.assign(table_from, table_from + rows + 1);
    plan->query_from.assign(query_from, query_from + rows + 1);
    plan->starts.assign(starts, starts + rows);
    plan->page_size = page_size;
    return plan;
}

SG_API void sg_plan_free(void* plan) { delete static_cast<Plan*>(plan); }

SG_API void sg_attention(void* engine, void* plan, const void* q, int64_t q_token, int64_t q_head, const void* k,
                         const void* v, void* out, const float* sinks, int64_t heads, int64_t kv_heads, int64_t dim,
                         int64_t v_dim, int64_t window, float scale, int type) {
    auto& e = *static_cast<Engine*>(engine);
    auto& p = *static_cast<Plan*>(plan);
    const Cut& cut = p.cut(heads, kv_heads, v_dim, window, e.threads.count());
    const int64_t room = tile_bytes(dim, v_dim);
    e.tiles.resize(room * e.threads.count() + 64);
    char* scratch = e.tiles.data() + (64 - reinterpret_cast<uintptr_t>(e.tiles.data()) % 64) % 64;
    const auto pieces = static_cast<int64_t>(cut.pieces.size());
    Attention job{q, q_token, q_head, k, v, out, sinks, p.tables.data(), p.table_from.data(), p.query_from.data(),
                  p.starts.data(), p.rows(), heads, kv_heads, dim, v_dim, p.page_size, window, scale, type,
                  cut.pieces.data(), pieces, e.threads.count(), scratch, room};
    e.threads.run(e.kernels.attention, &job, pieces);
}

SG_API void sg_norm(void* engine, const void* x, int64_t x_stride, const void* added, int64_t added_stride, void* sum,
                    void* out, const void* weight, int64_t rows, int64_t size, float eps, int type, int weight_type) {
    auto& e = *static_cast<Engine*>(engine);
    Norm job{x, x_stride, added, added_stride, sum, out, weight, rows, size, eps, type, weight_type, 0};
    job.row_step = row_step(rows, size, e.threads.count());
    e.threads.run(e.kernels.norm, &job, parts(rows, job.row_step));
}

SG_API void sg_rotate(void* engine, const void* qkv, int64_t stride, const void* q_norm, const void* k_norm,
                      const void* cos, const void* sin, void* q_out, void* k, void* v, const int64_t* slots,
                      int64_t tokens, int64_t heads, int64_t kv_heads, int64_t dim, int64_t turned, float eps,
                      int type) {
    auto& e = *static_cast<Engine*>(engine);
    Rotate job{qkv, stride, q_norm, k_norm, cos, sin, q_out, k, v, slots, tokens, heads, kv_heads, dim, turned, eps,
               type, 0};
    job.row_step = row_step(tokens, (heads + 2 * kv_heads) * dim, e.threads.count());
    e.threads.run(e.kernels.rotate, &job, parts(tokens, job.row_step));
}

SG_API void sg_gated(void* engine, const void* x, int64_t x_stride, void* out, int64_t rows, int64_t size,
                     int activation, int type) {
    auto& e = *static_cast<Engine*>(engine);
    Gated job{x, x_stride, out, rows, size, activation, type, 0};
    job.row_step = row_step(rows, size, e.threads.count());
    e.threads.run(e.kernels.gated, &job, parts(rows, job.row_step));
}
