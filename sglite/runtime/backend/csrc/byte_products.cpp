// What reads codes, for processors that multiply bytes but not bfloat16; all else is AVX512's.
#include "codes.hpp"
#include "experts.hpp"

extern const sglite::ByteProducts sg_byte_products;
const sglite::ByteProducts sg_byte_products = {inputs, codes, experts_up, experts_down, kCodeBytes};
