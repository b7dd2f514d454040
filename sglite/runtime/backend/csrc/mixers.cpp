// How the work of latent attention and of recurrent layers is cut.
#include "mixers.hpp"

#include "plan.hpp"

namespace sglite {

void Engine::attend_latents(Latents job, Plan& plan) {
    // A stretch is read once for all heads where rows alone keep the threads busy.
    const int64_t wanted = parts(4 * threads.count(), most<int64_t>(plan.rows(), 1));
    const int64_t shared = parts(parts(job.heads, wanted), 8) * 8;
    const int64_t heads = threads.count() == 1 ? least(job.heads, kLatentRows) : least(shared, kLatentRows);
    latent_pieces.clear();
    for (int32_t row = 0; row < plan.rows(); row++) {
        const int64_t queries = plan.query_from[row + 1] - plan.query_from[row];
        const int64_t together = least(heads, job.heads), at_once = kLatentRows / together;
        // The last queries see most, so they come first.
        for (int64_t tile = parts(queries, at_once) - 1; tile >= 0; tile--)
            for (int64_t head = 0; head < job.heads; head += together)
                latent_pieces.push_back({row, static_cast<int32_t>(tile * at_once),
                                         static_cast<int32_t>(least(at_once, queries - tile * at_once)),
                                         static_cast<int32_t>(head),
                                         static_cast<int32_t>(least(together, job.heads - head))});
    }
    const int64_t tile = kLatentRows * kLatentSlots;
    job.scratch_size = parts(tile * (4 + size_of(job.type)) + kLatentRows * job.v_dim * 4, 64) * 64;
    job.scratch = tiles.at_least(job.scratch_size * threads.count());
    job.tables = plan.tables.data();
    job.table_from = plan.table_from.data();
    job.query_from = plan.query_from.data();
    job.starts = plan.starts.data();
    job.page_size = plan.page_size;
    job.pieces = latent_pieces.data();
    threads.run(kernels.latents, &job, static_cast<int64_t>(latent_pieces.size()));
}

void Engine::convolve(Conv job) { threads.run(kernels.conv, &job, parts(job.channels, kChannels)); }

void Engine::remember(Delta job) { threads.run(kernels.delta, &job, job.batch.rows * job.v_heads); }

void Engine::normalise_gated(GatedNorm job) {
    job.row_step = rows_at_once(job.tokens * job.heads, job.size, threads.count());
    threads.run(kernels.gated_norm, &job, parts(job.tokens * job.heads, job.row_step));
}

}  // namespace sglite
