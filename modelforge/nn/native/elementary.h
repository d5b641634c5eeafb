/* Elementary functions that compilers can turn into vectors: to the last few bits, for REAL as float or as double. */

#include <string.h>

typedef REAL real;
typedef long long whole;

#define IS_DOUBLE (sizeof(real) == 8)
#define BITS __typeof__(__builtin_choose_expr(IS_DOUBLE, 0ULL, 0U))
#define MANTISSA (IS_DOUBLE ? 52 : 23)
#define BIAS (IS_DOUBLE ? 1023 : 127)
#define PI 3.14159265358979323846
#define LOG2_E ((real)1.44269504088896340736)

/* 2^y for y <= 0: by the series of exp(g) for the part beyond whole numbers, |g| < 0.35. */
static inline real power_of_two(real y) {
    const real lowest = IS_DOUBLE ? -1022 : -126;
    y = y < lowest ? lowest : y;
    const real number = __builtin_rint(y), g = (y - number) * (real)0.69314718055994530942;
    real p = (real)(1.0 / 5040);
    if (IS_DOUBLE) {
        p = (real)(1.0 / 6227020800.0) * g + (real)(1.0 / 479001600.0);
        p = (p * g + (real)(1.0 / 39916800.0)) * g + (real)(1.0 / 3628800.0);
        p = (p * g + (real)(1.0 / 362880.0)) * g + (real)(1.0 / 40320.0);
        p = p * g + (real)(1.0 / 5040);
    }
    p = (p * g + (real)(1.0 / 720)) * g + (real)(1.0 / 120);
    p = (p * g + (real)(1.0 / 24)) * g + (real)(1.0 / 6);
    p = ((p * g + (real)0.5) * g + 1) * g + 1;
    const BITS bits = (BITS)((int)number + BIAS) << MANTISSA;
    real scale;
    memcpy(&scale, &bits, sizeof(scale));
    return p * scale;
}

/* The logarithm to the base 2 of x > 0: x = 2^n m with 0.7 < m < 1.42, ln m = 2 artanh((m - 1)/(m + 1)). */
static inline real logarithm(real x) {
    BITS bits;
    memcpy(&bits, &x, sizeof(bits));
    const BITS offset = ((BITS)BIAS << MANTISSA) - (IS_DOUBLE ? (BITS)0x3FE6A09E667F3BCDULL : (BITS)0x3F3504F3U);
    const int number = (int)((bits + offset) >> MANTISSA) - BIAS;
    bits -= (BITS)(whole)number << MANTISSA;
    real m;
    memcpy(&m, &bits, sizeof(m));
    const real s = (m - 1) / (m + 1), q = s * s;
    real p = (real)(1.0 / 11);
    if (IS_DOUBLE) {
        p = (real)(1.0 / 23) * q + (real)(1.0 / 21);
        p = (p * q + (real)(1.0 / 19)) * q + (real)(1.0 / 17);
        p = (p * q + (real)(1.0 / 15)) * q + (real)(1.0 / 13);
        p = p * q + (real)(1.0 / 11);
    }
    p = (p * q + (real)(1.0 / 9)) * q + (real)(1.0 / 7);
    p = ((p * q + (real)(1.0 / 5)) * q + (real)(1.0 / 3)) * q + 1;
    return number + 2 * LOG2_E * s * p;
}

/* f_c = sin^2 w and its slope, w = pi/2 (1 - d/cutoff) between 0 and pi/2. */
static inline void envelope(real distance, real cutoff, real *value, real *slope) {
    real w = (real)(0.5 * PI) * (1 - distance / cutoff);
    w = w < 0 ? 0 : w;
    const real q = w * w;
    real s = (real)(1.0 / 6227020800.0), c = (real)(1.0 / 479001600.0);
    if (IS_DOUBLE) {
        s = (real)(-1.0 / 25852016738884976640000.0) * q + (real)(1.0 / 51090942171709440000.0);
        s = (s * q - (real)(1.0 / 121645100408832000.0)) * q + (real)(1.0 / 355687428096000.0);
        s = (s * q - (real)(1.0 / 1307674368000.0)) * q + (real)(1.0 / 6227020800.0);
        c = (real)(-1.0 / 1124000727777607680000.0) * q + (real)(1.0 / 2432902008176640000.0);
        c = (c * q - (real)(1.0 / 6402373705728000.0)) * q + (real)(1.0 / 20922789888000.0);
        c = (c * q - (real)(1.0 / 87178291200.0)) * q + (real)(1.0 / 479001600.0);
    }
    s = (s * q - (real)(1.0 / 39916800.0)) * q + (real)(1.0 / 362880.0);
    s = ((s * q - (real)(1.0 / 5040)) * q + (real)(1.0 / 120)) * q - (real)(1.0 / 6);
    c = (c * q - (real)(1.0 / 3628800.0)) * q + (real)(1.0 / 40320);
    c = ((c * q - (real)(1.0 / 720)) * q + (real)(1.0 / 24)) * q - (real)0.5;
    const real sine = (s * q + 1) * w, cosine = c * q + 1;
    *value = sine * sine;
    *slope = (real)-PI / cutoff * sine * cosine;
}
