#include "plan.hpp"

#include <algorithm>
#include <numeric>

#include "shared.hpp"

namespace sglite {
namespace {

constexpr int64_t kLeastStretch = 256;  // slots of a row that are worth a piece of their own
constexpr int64_t kReadyTiles = 4;        // of a row's queries, for which keys and values are worth a copy
constexpr int64_t kReadyNumbers = 8 << 20;  // of values at most
constexpr int64_t kOwnTile = 16;        // lanes from which a row's own slots are computed as tiles

// Of one thread's tiles, see Tiles in attention_tile.hpp, or of a token's queries as floats.
int64_t scratch_bytes(const Attention& job) {
    const int64_t numbers = kTileLanes * (job.dim + kTileSlots + 2 * job.v_dim + 5) +
                            kTileSlots * (job.dim + job.v_dim + kTileLanes + 2);
    return (most(numbers, job.heads * job.dim) * 4 + 16 * 64 + 63) / 64 * 64;
}

// Writes the pieces of a cut.
struct Cutter {
    const Plan& plan;
    Plan::Cut& cut;
    const int64_t group, wanted;  // lanes of a token; pieces that keep the threads busy
    std::vector<int64_t> own_from;
    std::vector<int32_t> parts_of;  // tokens' parts so far
    int64_t work = 0;               // slots times tokens, of all rows

    Cutter(const Plan& of, Plan::Cut& to, int threads)
        : plan(of), cut(to), group(to.heads / to.kv_heads), wanted(threads == 1 ? 1 : 4 * threads) {
        cut.order.resize(plan.tokens());
        std::iota(cut.order.begin(), cut.order.end(), 0);
        parts_of.assign(plan.tokens(), 0);
        for (int64_t row = 0; row < plan.rows(); row++) work += plan.queries(row) * seen(row);
    }

    int64_t first_seen(int64_t end) const { return cut.window ? most<int64_t>(0, end - cut.window) : 0; }
    int64_t end(int64_t row) const { return plan.starts[row] + plan.queries(row); }
    int64_t seen(int64_t row) const { return end(row) - first_seen(plan.starts[row] + 1); }

    // Into how many stretches work on `slots` slots is cut that is `pieces` pieces anyway.
    int64_t stretches(int64_t slots, int64_t tokens, int64_t pieces) const {
        const int64_t share = parts(wanted * slots * tokens, most<int64_t>(work, 1));
        return most<int64_t>(1, least(parts(share, pieces), slots / kLeastStretch));
    }

    // Tokens from number `first` of the order on, over slots `from` up to `to` of a row in `ways` stretches, each of
    // which is one more part of the tokens.
    void add(int64_t row, int64_t first, int64_t tokens, int64_t from, int64_t to, int64_t ways, int64_t kv_step,
             bool tile) {
        const int64_t step = parts(parts(to - from, ways), kTileSlots) * kTileSlots;
        int32_t number = parts_of[cut.order[first]];
        for (int64_t at = from; at < to; at += step, number++)
            for (int64_t kv = 0; kv < cut.kv_heads; kv += kv_step) {
                const int64_t kv_heads = least(kv_step, cut.kv_heads - kv), end = least(at + step, to);
                cut.pieces.push_back({static_cast<int32_t>(row), static_cast<int32_t>(kv),
                                      static_cast<int32_t>(kv_heads), static_cast<int32_t>(first),
                                      static_cast<int32_t>(tokens), static_cast<int32_t>(at),
                                      static_cast<int32_t>(end), number, tile, -1});
                cut.slots_read += (end - at) * kv_heads * (tile ? 1 : tokens);
            }
        for (int64_t i = 0; i < tokens; i++) parts_of[cut.order[first + i]] = number;
    }

    // Tokens of rows `rows` over slots that they share.
    void add_shared(const SharedSlots& shared, const std::vector<int32_t>& rows) {
        const int64_t first = static_cast<int64_t>(cut.order.size());
        for (int32_t i = shared.first; i < shared.first + shared.count; i++)
            for (int64_t t = plan.query_from[rows[i]]; t < plan.query_from[rows[i] + 1]; t++)
                cut.order.push_back(static_cast<int32_t>(t));
        const int64_t tokens = static_cast<int64_t>(cut.order.size()) - first, at_once = kTileLanes / group;
        const int64_t ways = stretches(shared.to - shared.from, tokens, cut.kv_heads * parts(tokens, at_once));
        for (int64_t t = 0; t < tokens; t += at_once)
            add(rows[shared.first], first + t, least(at_once, tokens - t), shared.from, shared.to, ways, 1, true);
    }

    void add_row(int64_t row) {
        const int64_t queries = plan.queries(row), first = plan.query_from[row], start = plan.starts[row];
        const auto from = [&](int64_t query) { return most(own_from[row], first_seen(start + query + 1)); };
        if (queries * group < kOwnTile || group > kTileLanes) {
            const int64_t together = most<int64_t>(1, kStateFloats / (group * cut.v_dim));
            const int64_t kv_step = least(cut.kv_heads, together);
            add(row, first, queries, from(0), end(row),
                stretches(end(row) - from(0), queries, parts(cut.kv_heads, kv_step)), kv_step, false);
            return;
        }
        const int64_t at_once = kTileLanes / group, tiles = parts(queries, at_once);
        const auto before = static_cast<int64_t>(cut.pieces.size());
        // The last queries see most, so they come first.
        for (int64_t query = (tiles - 1) * at_once; query >= 0; query -= at_once) {
            const int64_t tokens = least(at_once, queries - query), to = start + query + tokens;
            add(row, first + query, tokens, from(query), to, stretches(to - from(query), tokens, cut.kv_heads * tiles),
                1, true);
        }
        // A KV head's keys and values stay in the cache while all tiles meet them.
        const auto heads = [](const AttentionPiece& a, const AttentionPiece& b) { return a.kv_head < b.kv_head; };
        std::stable_sort(cut.pieces.begin() + before, cut.pieces.end(), heads);
        if (tiles >= kReadyTiles) make_ready(row, before);
    }

    // Pieces from `before` on read keys and values of their row that are made ready for all of them.
    void make_ready(int64_t row, int64_t before) {
        const int64_t count = parts(end(row), kTileSlots), first = static_cast<int64_t>(cut.stretches.size());
        if ((first + count * cut.kv_heads) * kTileSlots * cut.v_dim > kReadyNumbers) return;
        for (int32_t kv = 0; kv < cut.kv_heads; kv++)
            for (int32_t i = 0; i < count; i++)
                cut.stretches.push_back({static_cast<int32_t>(row), kv, i, static_cast<int32_t>(end(row))});
        for (auto piece = cut.pieces.begin() + before; piece != cut.pieces.end(); ++piece)
            piece->ready = static_cast<int32_t>(first + piece->kv_head * count);
    }

    void run() {
        std::vector<int32_t> rows;
        for (int32_t row = 0; row < plan.rows(); row++)
            if (plan.queries(row) * group <= kTileLanes / 2 && seen(row) == end(row)) rows.push_back(row);
        const auto shared = find_shared(plan, group, rows, own_from);
        for (const auto& stretch : shared) add_shared(stretch, rows);
        for (int64_t row = 0; row < plan.rows(); row++)
            if (plan.queries(row)) add_row(row);
        cut.part_from.assign(plan.tokens() + 1, 0);
        for (int32_t token = 0; token < plan.tokens(); token++) {
            const bool parted = parts_of[token] > 1;
            cut.part_from[token + 1] = cut.part_from[token] + (parted ? parts_of[token] : 0);
            if (parted) cut.parted.push_back(token);
        }
        cut.slots_read /= cut.kv_heads;
    }
};

}  // namespace

Plan::Plan(int64_t rows, const int32_t* table_pages, const int64_t* row_tables, const int64_t* row_queries,
           const int64_t* row_starts, int64_t size)
    : tables(table_pages, table_pages + row_tables[rows]),
      table_from(row_tables, row_tables + rows + 1),
      query_from(row_queries, row_queries + rows + 1),
      starts(row_starts, row_starts + rows),
      page_size(size) {
    ends.reserve(tokens());
    for (int64_t row = 0; row < rows; row++)
        for (int64_t i = 0; i < queries(row); i++) ends.push_back(static_cast<int32_t>(starts[row] + i + 1));
}

const Plan::Cut& Plan::cut(int64_t heads, int64_t kv_heads, int64_t v_dim, int64_t window, int threads) {
    for (const auto& known : cuts)
        if (known.heads == heads && known.kv_heads == kv_heads && known.v_dim == v_dim && known.window == window)
            return known;
    Cut made{heads, kv_heads, v_dim, window, {}, {}, {}, {}, {}, 0};
    Cutter(*this, made, threads).run();
    cuts.push_back(std::move(made));
    return cuts.back();
}

void Engine::attend(Attention job, Plan& plan) {
    const Plan::Cut& cut = plan.cut(job.heads, job.kv_heads, job.v_dim, job.window, threads.count());
    const int64_t room = scratch_bytes(job);
    job.part_size = job.heads * job.v_dim + parts(2 * job.heads, 16) * 16;
    const size_t needed = static_cast<size_t>(cut.part_from.back() * job.part_size);
    if (found.size() < needed) found.resize(needed);
    job.tables = plan.tables.data();
    job.table_from = plan.table_from.data();
    job.ends = plan.ends.data();
    job.order = cut.order.data();
    job.part_from = cut.part_from.data();
    job.parted = cut.parted.data();
    job.parts = found.data();
    job.page_size = plan.page_size;
    job.pieces = cut.pieces.data();
    job.num_pieces = static_cast<int64_t>(cut.pieces.size());
    job.threads = threads.count();
    job.scratch = tiles.at_least(room * threads.count());
    job.scratch_size = room;
    slots_read += cut.slots_read;
    if (kernels.ready && job.type && !job.k_scales && !cut.stretches.empty()) {
        const int64_t count = static_cast<int64_t>(cut.stretches.size());
        job.stretches = cut.stretches.data();
        job.ready = ready.at_least(count * kTileSlots * (job.dim + job.v_dim) * size_of(job.type));
        threads.run(kernels.ready, &job, count);
    }
    threads.run(kernels.attention, &job, job.num_pieces);
    threads.run(kernels.combine, &job, static_cast<int64_t>(cut.parted.size()));
}

}  // namespace sglite
