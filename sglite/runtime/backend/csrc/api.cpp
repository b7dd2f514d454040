// What Python calls: a C interface over raw pointers. Every call may be made without the GIL; calls on one engine take
// turns. Shapes are checked by the caller.
#include <cpuid.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstring>

#include "engine.hpp"
#include "plan.hpp"
#include "step.hpp"

#define SG_API extern "C" __attribute__((visibility("default")))

// Those that this library was built with.
extern const sglite::Kernels sg_avx2 __attribute__((weak)), sg_avx512 __attribute__((weak)),
    sg_avx512_bf16 __attribute__((weak)), sg_avx512_amx __attribute__((weak)), sg_amx_imitated __attribute__((weak));
extern const sglite::ByteProducts sg_byte_products __attribute__((weak));

namespace {

using namespace sglite;

// An engine for the time of a call.
struct Turn {
    explicit Turn(void* given) : engine(*static_cast<Engine*>(given)), lock(engine.turn) {}
    Engine* operator->() { return &engine; }

    Engine& engine;
    std::lock_guard<std::mutex> lock;
};

// AVX512's kernels but for products with codes; null where the library was built without.
const Kernels* avx512_vnni() {
    if (!&sg_avx512 || !&sg_byte_products) return nullptr;
    static const Kernels all = [] {
        Kernels made = sg_avx512;
        made.inputs = sg_byte_products.inputs;
        made.codes = sg_byte_products.codes;
        made.experts_up = sg_byte_products.experts_up;
        made.experts_down = sg_byte_products.experts_down;
        made.code_bytes = sg_byte_products.code_bytes;
        return made;
    }();
    return &all;
}

struct Level {
    int bit;
    const Kernels* kernels;  // null where the library was built without
};

const Level kLevels[] = {
    {1, &sg_avx2},       {2, &sg_avx512},      {4, &sg_avx512_bf16},
    {8, &sg_avx512_amx}, {16, &sg_amx_imitated}, {32, avx512_vnni()},
};

// Whether this process may use the tiles of AMX: the processor has them, and the kernel keeps them for its threads once
// it is asked to.
bool tiles_allowed() {
    constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24, kInt8 = 1u << 25;
    constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (~d & (kBf16 | kTile | kInt8))) return false;
    return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}

int processor_levels() {
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 0;
    constexpr int kNarrow = 1 | 16;
    const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (!wide) return kNarrow;
    if (!__builtin_cpu_supports("avx512vnni")) return kNarrow | 2;
    if (!__builtin_cpu_supports("avx512bf16")) return kNarrow | 2 | 32;
    return kNarrow | 2 | 32 | 4 | (tiles_allowed() ? 8 : 0);
}

}  // namespace

// Bits of the instruction sets that this processor has and this library has kernels for: 1 AVX2, 2 AVX512, 4 AVX512
// with products of bfloat16 and bytes, 8 that with AMX, 32 AVX512 with products of bytes; 16 AVX2 with an imitation of
// AMX, for tests.
SG_API int sg_levels() {
    int levels = 0;
    for (const Level& level : kLevels)
        if (level.kernels) levels |= level.bit;
    return levels & processor_levels();
}

// With the kernels of one of these bits.
SG_API void* sg_new(int bit, int threads) {
    for (const Level& level : kLevels)
        if (level.bit == bit && level.kernels) return new Engine(*level.kernels, threads);
    return nullptr;
}

SG_API void sg_free(void* engine) { delete static_cast<Engine*>(engine); }

// Asks for huge pages, which memory gets when it is first written to: fewer page walks where it is read end to end.
SG_API void sg_huge(void* data, int64_t bytes) {
    const uintptr_t page = 2 << 20, first = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
    const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / page * page;
    if (end > first) madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
}

// Has memory that nothing was written to brought in, whole pages of it; where the system cannot, nothing happens.
SG_API void sg_bring(void* data, int64_t bytes) {
    constexpr int kPopulateWrite = 23;  // MADV_POPULATE_WRITE
    const uintptr_t page = 4096, first = reinterpret_cast<uintptr_t>(data) / page * page;
    const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes + page - 1) / page * page;
    if (bytes > 0) madvise(reinterpret_cast<void*>(first), end - first, kPopulateWrite);
}

SG_API void sg_pack(void* engine, void* weight, int64_t outs, int64_t ins, int kind, int back) {
    Turn(engine)->arrange(weight, outs, ins, kind, back != 0);
}

SG_API void sg_product(void* engine, const Weight* weight, const void* x, int64_t x_stride, const void* bias, void* out,
                       int64_t rows, int out_type) {
    Turn(engine)->multiply({x, x_stride, *weight, bias, out, weight->outs, rows, out_type});
}

// Of every row the first place of its greatest product, and that; see Engine::find_greatest.
SG_API void sg_greatest(void* engine, const Weight* weight, const void* x, int64_t x_stride, int64_t rows, int64_t* ids,
                        float* tops) {
    Turn(engine)->find_greatest({x, x_stride, *weight, nullptr, nullptr, weight->outs, rows, 0}, ids, tops);
}

// Rows `ids` of a packed weight: [count, ins].
SG_API void sg_embedding(const Weight* weight, const int64_t* ids, int64_t count, void* out) {
    read_rows(*weight, ids, count, out);
}

SG_API void* sg_plan_new(int64_t rows, const int32_t* tables, const int64_t* table_from, const int64_t* query_from,
                         const int64_t* starts, int64_t page_size) {
    return new Plan(rows, tables, table_from, query_from, starts, page_size);
}

SG_API void sg_plan_free(void* plan) { delete static_cast<Plan*>(plan); }

// Of keys and values in int8 there are the scales.
SG_API void sg_attention(void* engine, void* plan, const void* q, int64_t q_token, int64_t q_head, const void* k,
                         const void* v, const float* k_scales, const float* v_scales, void* out, const float* sinks,
                         int64_t heads, int64_t kv_heads, int64_t dim, int64_t v_dim, int64_t window, float scale,
                         int type) {
    Attention job{};
    job.q = q, job.q_token = q_token, job.q_head = q_head;
    job.k = k, job.v = v, job.k_scales = k_scales, job.v_scales = v_scales, job.out = out, job.sinks = sinks;
    job.heads = heads, job.kv_heads = kv_heads, job.dim = dim, job.v_dim = v_dim;
    job.window = window, job.scale = scale, job.type = type;
    Turn(engine)->attend(job, *static_cast<Plan*>(plan));
}

SG_API int64_t sg_slots_read(void* engine) { return Turn(engine)->slots_read; }

SG_API void sg_norm(void* engine, const void* x, int64_t x_stride, const void* added, int64_t added_stride, void* sum,
                    void* out, const void* weight, int64_t rows, int64_t size, float eps, int type, int weight_type) {
    Turn(engine)->normalise(
        {x, x_stride, added, added_stride, sum, out, weight, rows, size, eps, type, weight_type, 0});
}

SG_API void sg_rotate(void* engine, const void* qkv, int64_t stride, const void* q_norm, const void* k_norm,
                      const void* cos, const void* sin, void* q_out, void* k, void* v, float* k_scales,
                      float* v_scales, const int64_t* slots, int64_t tokens, int64_t heads, int64_t kv_heads,
                      int64_t dim, int64_t turned, float eps, int type, int wide_norms) {
    Turn(engine)->rotate({qkv, stride, q_norm, k_norm, cos, sin, q_out, k, v, k_scales, v_scales, slots, tokens, heads,
                          kv_heads, dim, turned, eps, type, 0, wide_norms});
}

SG_API void sg_gated(void* engine, const void* x, int64_t x_stride, void* out, int64_t rows, int64_t size,
                     int activation, int type) {
    Turn(engine)->activate({x, x_stride, out, size, rows, size, activation, type, 0});
}

// `mask` or null: [rows, words].
SG_API void sg_sample(void* engine, const float* logits, int64_t stride, const uint32_t* mask, int64_t words,
                      const float* temperatures, const int32_t* top_k, const double* top_p, const double* min_p,
                      const double* uniforms, int64_t* ids, float* peaks, float* left, int64_t rows, int64_t width) {
    Turn(engine)->sample({logits, stride, mask, words, temperatures, top_k, top_p, min_p, uniforms, ids, peaks, left,
                          rows, width, nullptr, 0, 0});
}

// `plans` and `slots` of the batch in pages and in frames; null where there are none, as `last` where all is wanted.
SG_API void sg_dense_layers(void* engine, const DenseLayer* layers, int64_t count, void* x, const void* cos,
                            const void* sin, void* plan, void* framed_plan, const int64_t* slots,
                            const int64_t* framed_slots, void* last, const int64_t* wanted,
                            int64_t num_wanted, int64_t tokens, int64_t hidden, int64_t turned, int type) {
    Turn turn(engine);
    dense_layers(turn.engine, layers, count,
                 {x, cos, sin, {static_cast<Plan*>(plan), static_cast<Plan*>(framed_plan)}, {slots, framed_slots},
                  static_cast<Plan*>(last), wanted, num_wanted, tokens, hidden, turned, type});
}

// The jobs below are structs of mixers.hpp; what is known here alone Python leaves at zero.
SG_API void sg_route(void* engine, const Route* job) { Turn(engine)->choose(*job); }

SG_API void sg_experts(void* engine, const Experts* job, const int64_t* ids) { Turn(engine)->mix(*job, ids); }

SG_API void sg_each(void* engine, const Each* job) { Turn(engine)->multiply_each(*job); }

SG_API void sg_latents(void* engine, void* plan, const Latents* job) {
    Turn(engine)->attend_latents(*job, *static_cast<Plan*>(plan));
}

SG_API void sg_conv(void* engine, const Conv* job) { Turn(engine)->convolve(*job); }

SG_API void sg_delta(void* engine, const Delta* job) { Turn(engine)->remember(*job); }

SG_API void sg_gated_norm(void* engine, const GatedNorm* job) { Turn(engine)->normalise_gated(*job); }
