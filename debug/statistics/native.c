/* Sums over tensors in one pass over memory, a test for finite numbers, and CRC-32.  native.py compiles and calls it. */

#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef __PCLMUL__
#include <immintrin.h>
#endif

#define LANES 32   /* sums kept side by side, so that compilers use vector registers */
#define BLOCK 4096 /* elements that stay in the first cache while they are read twice */

typedef struct { double sum, spread, low, high, zeros; } Sums;

/* Measures n > 0 numbers; spread is the sum of the squared distances from the mean. */
static Sums of_block(const float *x, int64_t n) {
    float sum[LANES] = {0}, far[LANES] = {0}, square[LANES] = {0}, none[LANES] = {0}, low[LANES], high[LANES];
    int64_t whole = n - n % LANES;
    double total = 0, off = 0, spread = 0;
    Sums result = {0, 0, x[0], x[0], 0};
    for (int j = 0; j < LANES; j++) low[j] = high[j] = x[0];
    for (int64_t i = 0; i < whole; i += LANES)
        for (int j = 0; j < LANES; j++) {
            float value = x[i + j];
            sum[j] += value;
            low[j] = value < low[j] ? value : low[j];
            high[j] = value > high[j] ? value : high[j];
        }
    for (int64_t i = whole; i < n; i++) {
        total += x[i];
        if (x[i] < result.low) result.low = x[i];
        if (x[i] > result.high) result.high = x[i];
    }
    for (int j = 0; j < LANES; j++) {
        total += sum[j];
        if (low[j] < result.low) result.low = low[j];
        if (high[j] > result.high) result.high = high[j];
    }
    float mean = (float)(total / (double)n);
    for (int64_t i = 0; i < whole; i += LANES)
        for (int j = 0; j < LANES; j++) {
            float distance = x[i + j] - mean;
            far[j] += distance;
            square[j] += distance * distance;
            none[j] += x[i + j] == 0 ? 1.0f : 0.0f;
        }
    for (int64_t i = whole; i < n; i++) {
        double distance = (double)x[i] - mean;
        off += distance;
        spread += distance * distance;
        result.zeros += x[i] == 0;
    }
    for (int j = 0; j < LANES; j++) { off += far[j]; spread += square[j]; result.zeros += none[j]; }
    result.sum = (double)mean * (double)n + off;
    result.spread = spread - off * off / (double)n;
    return result;
}

/* Writes count, sum, spread, squares, low, high and zeros of each row.  Kinds: 0 float32, 1 bfloat16. */
void measure(const void *const *rows, const int64_t *lengths, const int64_t *kinds, int64_t count,
             int64_t absolute, double *out) {
    float buffer[BLOCK];
    for (int64_t row = 0; row < count; row++, out += 7) {
        double zeros = 0, seen = 0, sum = 0, spread = 0, squares = 0, low = INFINITY, high = -INFINITY;
        for (int64_t start = 0; start < lengths[row]; start += BLOCK) {
            int64_t n = lengths[row] - start < BLOCK ? lengths[row] - start : BLOCK;
            const float *block = buffer;
            if (kinds[row] == 0) {
                block = (const float *)rows[row] + start;
            } else {
                const uint16_t *halves = (const uint16_t *)rows[row] + start;
                for (int64_t i = 0; i < n; i++) {
                    uint32_t bits = (uint32_t)halves[i] << 16;
                    memcpy(buffer + i, &bits, 4);
                }
            }
            if (absolute) {
                for (int64_t i = 0; i < n; i++) buffer[i] = fabsf(block[i]);
                block = buffer;
            }
            Sums here = of_block(block, n);
            double apart = seen ? here.sum / (double)n - sum / seen : 0;
            spread += here.spread + apart * apart * seen * (double)n / (seen + (double)n);
            squares += here.spread + here.sum * here.sum / (double)n;
            sum += here.sum;
            seen += (double)n;
            zeros += here.zeros;
            if (here.low < low) low = here.low;
            if (here.high > high) high = here.high;
        }
        out[0] = seen, out[1] = sum, out[2] = spread, out[3] = squares, out[4] = low, out[5] = high, out[6] = zeros;
    }
}

/* Defines a function that returns whether n numbers are finite: the bits of none of them have the largest exponent. */
#define FINITE(name, bits, exponent)                                                            \
    static int name(const bits *x, int64_t n) {                                                 \
        bits found = 0;                                                                         \
        for (int64_t i = 0; i < n; i++) found |= (bits)((x[i] & (exponent)) == (exponent));     \
        return !found;                                                                          \
    }
FINITE(finite_float, uint32_t, 0x7f800000u)
FINITE(finite_bfloat16, uint16_t, 0x7f80u)
FINITE(finite_half, uint16_t, 0x7c00u)
FINITE(finite_double, uint64_t, 0x7ff0000000000000u)

/* Returns whether all numbers of some areas are finite.  An area is five numbers: its address; its rows; the distance of
   the rows' beginnings and the length of a row, in elements; and its kind: 0 float32, 1 bfloat16, 2 float16, 3 float64. */
int64_t all_finite(const int64_t *areas, int64_t count) {
    static const int size[] = {4, 2, 2, 8};
    for (const int64_t *area = areas; area < areas + 5 * count; area += 5)
        for (int64_t row = 0; row < area[1]; row++) {
            const char *x = (const char *)(intptr_t)area[0] + row * area[2] * size[area[4]];
            int finite = area[4] == 0   ? finite_float((const uint32_t *)x, area[3])
                         : area[4] == 1 ? finite_bfloat16((const uint16_t *)x, area[3])
                         : area[4] == 2 ? finite_half((const uint16_t *)x, area[3])
                                        : finite_double((const uint64_t *)x, area[3]);
            if (!finite) return 0;
        }
    return 1;
}

#ifdef __PCLMUL__
#define FOLD(x, by, data) \
    _mm_xor_si128(_mm_xor_si128(_mm_clmulepi64_si128(x, by, 0x00), _mm_clmulepi64_si128(x, by, 0x11)), data)
#define LOAD(at) _mm_loadu_si128((const __m128i *)(at))

/* zlib's CRC-32 by carry-less products (Gopal et al., Fast CRC Computation for Generic Polynomials Using PCLMULQDQ,
   Intel 2009), of a multiple of 16 bytes, at least 64. */
uint32_t crc32(const unsigned char *bytes, int64_t count, uint32_t before) {
    const __m128i four = _mm_set_epi64x(0x01c6e41596, 0x0154442bd4), one = _mm_set_epi64x(0x00ccaa009e, 0x01751997d0);
    const __m128i last = _mm_set_epi64x(0, 0x0163cd6124), barrett = _mm_set_epi64x(0x01f7011641, 0x01db710641);
    const __m128i mask = _mm_setr_epi32(~0, 0, ~0, 0), start = _mm_cvtsi32_si128((int)~before);
    __m128i a = _mm_xor_si128(LOAD(bytes), start), b = LOAD(bytes + 16), c = LOAD(bytes + 32), d = LOAD(bytes + 48), e;
    for (bytes += 64, count -= 64; count >= 64; bytes += 64, count -= 64) {
        a = FOLD(a, four, LOAD(bytes));
        b = FOLD(b, four, LOAD(bytes + 16));
        c = FOLD(c, four, LOAD(bytes + 32));
        d = FOLD(d, four, LOAD(bytes + 48));
    }
    a = FOLD(a, one, b);
    a = FOLD(a, one, c);
    a = FOLD(a, one, d);
    for (; count >= 16; bytes += 16, count -= 16) a = FOLD(a, one, LOAD(bytes));
    a = _mm_xor_si128(_mm_srli_si128(a, 8), _mm_clmulepi64_si128(a, one, 0x10));
    e = _mm_srli_si128(a, 4);
    a = _mm_xor_si128(_mm_clmulepi64_si128(_mm_and_si128(a, mask), last, 0x00), e);
    e = _mm_clmulepi64_si128(_mm_and_si128(a, mask), barrett, 0x10);
    a = _mm_xor_si128(_mm_clmulepi64_si128(_mm_and_si128(e, mask), barrett, 0x00), a);
    return ~(uint32_t)_mm_extract_epi32(a, 1);
}
#endif
