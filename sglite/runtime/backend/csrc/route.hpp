// Which experts a token goes to: scores, the best of the best groups, and their weights.
#pragma once

#include "mixers.hpp"
#include "rowwise.hpp"

namespace {

constexpr float kLeast = -__builtin_inff();

// The place of the largest number of x [size], the first of equals; `x` has numbers that are none behind `size` and
// where one was found before, and these are left alone. At least one must be left.
SG_INLINE int64_t best_of(const float* x, int64_t size) {
    vf top = splat(kLeast);
    for (int64_t i = 0; i < size; i += kLanes) top = larger(load<vf>(x + i), top);
    const float most = largest(top);
    int64_t at = 0;
    while (!(x[at] == most)) at++;
    return at;
}

SG_INLINE void take(float* x, int64_t at) { x[at] = __builtin_nanf(""); }

struct Scores {
    alignas(64) float score[sglite::kMostExperts], choice[sglite::kMostExperts], groups[sglite::kMostExperts];
};

static void score_experts(const sglite::Route& r, const float* logits, Scores& s) {
    vf top = splat(kLeast), total = vf{};
    int64_t padded = (r.experts + kLanes - 1) / kLanes * kLanes;
    memcpy(s.score, logits, r.experts * sizeof(float));
    for (int64_t e = r.experts; e < padded; e++) s.score[e] = kLeast;
    for (int64_t e = 0; e < padded; e += kLanes) top = larger(load<vf>(s.score + e), top);
    const float most = largest(top);
    for (int64_t e = 0; e < padded; e += kLanes) {
        const vf x = load<vf>(s.score + e), found = r.sigmoid ? sigmoid(x) : exponential(x - most);
        total += found;
        store(s.score + e, found);
    }
    const float scale = r.sigmoid ? 1.0f : 1.0f / sum(total);
    for (int64_t e = 0; e < r.experts; e++) {
        s.score[e] *= scale;
        const float choice = r.bias ? s.score[e] + r.bias[e] : s.score[e];
        s.choice[e] = choice == choice ? choice : kLeast;  // what is no number is chosen last
    }
    for (int64_t e = r.experts; e < padded; e++) take(s.choice, e);
}

// Leaves the experts of the best groups.
static void keep_groups(const sglite::Route& r, Scores& s) {
    const int64_t size = r.experts / r.groups, padded = (r.groups + kLanes - 1) / kLanes * kLanes;
    for (int64_t g = 0; g < padded; g++) {
        float first = kLeast, second = kLeast;
        for (int64_t e = g * size; g < r.groups && e < (g + 1) * size; e++) {
            const float x = s.choice[e];
            second = x > first ? first : x > second ? x : second;
            first = x > first ? x : first;
        }
        s.groups[g] = r.pairs ? first + second : first;
        if (g >= r.groups) take(s.groups, g);
    }
    for (int64_t i = 0; i < r.top_groups; i++) take(s.groups, best_of(s.groups, r.groups));
    for (int64_t g = 0; g < r.groups; g++)
        for (int64_t e = g * size; s.groups[g] == s.groups[g] && e < (g + 1) * size; e++) s.choice[e] = kLeast;
}

static void route_token(const sglite::Route& r, int64_t token) {
    Scores s;
    score_experts(r, r.logits + token * r.experts, s);
    if (r.groups > 1) keep_groups(r, s);
    int64_t* ids = r.ids + token * r.top_k;
    float* weights = r.weights + token * r.top_k;
    float total = 0.0f;
    for (int64_t i = 0; i < r.top_k; i++) {
        ids[i] = best_of(s.choice, r.experts);
        take(s.choice, ids[i]);
        weights[i] = s.score[ids[i]];
        total += weights[i];
    }
    const float scale = r.renormalize ? r.scaling / (total + 1e-20f) : r.scaling;
    for (int64_t i = 0; i < r.top_k; i++) weights[i] *= scale;
}

static void route(void* job, int64_t piece, int) {
    const sglite::Route& r = *(const sglite::Route*)job;
    const int64_t end = least(r.tokens, (piece + 1) * r.row_step);
    for (int64_t token = piece * r.row_step; token < end; token++) route_token(r, token);
}

}  // namespace
