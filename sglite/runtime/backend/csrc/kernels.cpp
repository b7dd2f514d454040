// One instruction set's kernels; compiled once for each, with SG_TABLE naming its table.
#include "kernels.hpp"

#include "attention.hpp"
#include "delta.hpp"
#include "experts.hpp"
#include "latents.hpp"
#include "codes.hpp"
#include "greatest.hpp"
#include "product.hpp"
#include "route.hpp"
#include "rowwise.hpp"
#include "sampling.hpp"

extern const sglite::Kernels SG_TABLE;
const sglite::Kernels SG_TABLE = {cut,        arrange,      product,     greatest, ready, attention, combine, norm, rotate, gated,
                                  route,      experts_up,   experts_down, experts_mix, each,  latents, conv, delta,  gated_norm,
                                  inputs,     codes,        sample,       kCodeBytes};
