#include "plan.hpp"

namespace sglite {
namespace {

// Of one thread's tiles, see Tiles in attention.hpp.
int64_t tile_bytes(int64_t dim, int64_t v_dim) {
    const int64_t numbers = kTileRows * dim + kTileSlots * (dim + v_dim) + 2 * kTileRows * kTileSlots +
                            2 * kTileRows * v_dim + 4 * kTileRows;
    return (numbers * 4 + 16 * 64 + 63) / 64 * 64;
}

}  // namespace

const Plan::Cut& Plan::cut(int64_t heads, int64_t kv_heads, int64_t v_dim, int64_t window, int threads) {
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

void Engine::attend(Attention job, Plan& plan) {
    const Plan::Cut& cut = plan.cut(job.heads, job.kv_heads, job.v_dim, job.window, threads.count());
    const int64_t room = tile_bytes(job.dim, job.v_dim);
    tiles.resize(room * threads.count() + 64);
    job.tables = plan.tables.data();
    job.table_from = plan.table_from.data();
    job.query_from = plan.query_from.data();
    job.starts = plan.starts.data();
    job.rows = plan.rows();
    job.page_size = plan.page_size;
    job.pieces = cut.pieces.data();
    job.num_pieces = static_cast<int64_t>(cut.pieces.size());
    job.threads = threads.count();
    job.scratch = tiles.data() + (64 - reinterpret_cast<uintptr_t>(tiles.data()) % 64) % 64;
    job.scratch_size = room;
    threads.run(kernels.attention, &job, job.num_pieces);
}

}  // namespace sglite
