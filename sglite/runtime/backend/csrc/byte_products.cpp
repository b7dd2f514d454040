// Products with codes alone, for processors that multiply bytes but not bfloat16; all else is AVX512's.
#include "codes.hpp"

extern const sglite::ByteProducts sg_byte_products;
const sglite::ByteProducts sg_byte_products = {inputs, codes, kCodeBytes};
