#include "step.hpp"

#include <cstring>

namespace sglite {
namespace {

int64_t aligned(int64_t bytes) { return parts(bytes, 64) * 64; }

// Numbers between rows that a product writes a few numbers of, row after row: a line more than they have, as rows a power
// of two apart get into each other's way in the cache.
int64_t apart(int64_t numbers, int32_t type) { return numbers + 64 / size_of(type); }

// Rows of numbers that layers use one after another.
struct Sizes {
    // Bytes: of hidden states, the same where they are added, what heads are made of, q, gates and ups, their products.
    int64_t narrow, added, qkv, q, wide, gated;

    Sizes(const DenseLayer* layers, int64_t count, int64_t tokens, int64_t hidden, int32_t type)
        : narrow(aligned(tokens * hidden * size_of(type))), added(aligned(tokens * apart(hidden, type) * size_of(type))),
          qkv(0), q(0), wide(0), gated(0) {
        for (int64_t i = 0; i < count; i++) {
            const DenseLayer& layer = layers[i];
            qkv = most(qkv, aligned(tokens * apart(layer.qkv.outs, type) * size_of(type)));
            q = most(q, aligned(tokens * layer.heads * layer.dim * size_of(type)));
            wide = most(wide, aligned(tokens * layer.gate_up.outs * size_of(type)));
            gated = most(gated, aligned(tokens * apart(layer.down.ins, type) * size_of(type)));
        }
    }
    int64_t all() const { return narrow + added + qkv + 2 * q + wide + gated; }
};

// The rows of one step.
struct Rows {
    Engine& engine;
    DenseStep step;
    char *normed, *added, *qkv, *q, *seen, *wide, *gated;

    Rows(Engine& given, const DenseStep& of, const Sizes& sizes) : engine(given), step(of) {
        char* at = engine.layers.at_least(sizes.all());
        const auto take = [&at](int64_t bytes) {
            char* here = at;
            at += bytes;
            return here;
        };
        normed = take(sizes.narrow), added = take(sizes.added), qkv = take(sizes.qkv), q = take(sizes.q);
        seen = take(sizes.q), wide = take(sizes.wide), gated = take(sizes.gated);
    }

    void norm(const void* weight, float eps, int32_t weight_type, bool first) {
        const int64_t hidden = step.hidden;
        if (first)
            engine.normalise({step.x, hidden, nullptr, 0, nullptr, normed, weight, step.tokens, hidden, eps, step.type,
                              weight_type, 0});
        else
            engine.normalise({step.x, hidden, added, apart(hidden, step.type), step.x, normed, weight, step.tokens, hidden, eps,
                              step.type, weight_type, 0});
    }

    void add() {
        engine.normalise({step.x, step.hidden, added, apart(step.hidden, step.type), step.x, nullptr, nullptr, step.tokens, step.hidden,
                          0.0f, step.type, step.type, 0});
    }

    void multiply(const char* x, int64_t x_stride, const Weight& weight, const void* bias, char* out) {
        engine.multiply({x, x_stride, weight, bias, out, apart(weight.outs, step.type), step.tokens, step.type});
    }

    void multiply_gated(const DenseLayer& layer) {
        const Weight& weight = layer.gate_up;
        const int64_t size = layer.down.ins;
        engine.multiply_gated(
            {normed, weight.ins, weight, layer.gate_up_bias, wide, weight.outs, step.tokens, step.type},
            {wide, weight.outs, gated, apart(size, step.type), step.tokens, size, layer.activation, step.type, 0});
    }

    void rotate(const DenseLayer& layer) {
        engine.rotate({qkv, apart(layer.qkv.outs, step.type), layer.q_norm, layer.k_norm, step.cos, step.sin, q, layer.k, layer.v,
                       layer.k_scales, layer.v_scales, step.slots[layer.framed], step.tokens, layer.heads,
                       layer.kv_heads, layer.dim, step.turned, layer.head_eps, step.type, 0});
    }

    void attend(const DenseLayer& layer) {
        Attention job{};
        job.q = q, job.q_token = layer.heads * layer.dim, job.q_head = layer.dim;
        job.k = layer.k, job.v = layer.v, job.k_scales = layer.k_scales, job.v_scales = layer.v_scales;
        job.out = seen, job.sinks = layer.sinks;
        job.heads = layer.heads, job.kv_heads = layer.kv_heads, job.dim = layer.dim, job.v_dim = layer.dim;
        job.window = layer.window, job.scale = layer.scale, job.type = step.type;
        engine.attend(job, *step.plans[layer.framed]);
    }

    // What follows is computed of the wanted tokens alone; keys and values of all are stored.
    void leave_wanted(const DenseLayer& layer) {
        const int64_t hidden = step.hidden * size_of(step.type), heads = layer.heads * layer.dim * size_of(step.type);
        for (int64_t i = 0; i < step.num_wanted; i++) {
            move(static_cast<char*>(step.x), i, step.wanted[i], hidden);
            move(q, i, step.wanted[i], heads);
        }
        step.tokens = step.num_wanted;
        step.plans[layer.framed] = step.last;
    }

    // Their results to where they belong.
    void put_back() {
        for (int64_t i = step.num_wanted - 1; i >= 0; i--)
            move(static_cast<char*>(step.x), step.wanted[i], i, step.hidden * size_of(step.type));
    }

    static void move(char* rows, int64_t to, int64_t from, int64_t bytes) {
        if (to != from) std::memcpy(rows + to * bytes, rows + from * bytes, bytes);
    }
};

}  // namespace

void dense_layers(Engine& engine, const DenseLayer* layers, int64_t count, const DenseStep& step) {
    Rows rows(engine, step, Sizes(layers, count, step.tokens, step.hidden, step.type));
    for (int64_t i = 0; i < count; i++) {
        const DenseLayer& layer = layers[i];
        rows.norm(layer.attention_norm, layer.attention_eps, layer.norm_type, i == 0);
        rows.multiply(rows.normed, layer.qkv.ins, layer.qkv, layer.qkv_bias, rows.qkv);
        rows.rotate(layer);
        if (step.last && i == count - 1) rows.leave_wanted(layer);
        rows.attend(layer);
        rows.multiply(rows.seen, layer.out.ins, layer.out, layer.out_bias, rows.added);
        rows.norm(layer.mlp_norm, layer.mlp_eps, layer.norm_type, false);
        rows.multiply_gated(layer);
        rows.multiply(rows.gated, apart(layer.down.ins, step.type), layer.down, layer.down_bias, rows.added);
    }
    rows.add();
    if (step.last) rows.put_back();
}

}  // namespace sglite
