/* Rows of channels, summed LANES at a time: LANES * VECTORS numbers of type REAL, which is float or double. */

#include <stdlib.h>
#include <string.h>

typedef REAL real;
typedef long long whole;
typedef real vector __attribute__((vector_size(LANES * sizeof(real)), aligned(sizeof(real))));
typedef struct {
    vector part[VECTORS];
} row;

#define INLINE static inline __attribute__((always_inline))

/* All vectors of a row, one at a time; or AT_ONCE of them in registers, from v on, each of which is v + u. */
#define PARTS for (int v = 0; v < VECTORS; v++)
#if defined(__AVX512F__) && VECTORS % 2 == 0
#define AT_ONCE 2
#else
#define AT_ONCE 1
#endif
#define SOME for (int v = 0; v < VECTORS; v += AT_ONCE)
#define THESE _Pragma("GCC unroll 2") for (int u = 0; u < AT_ONCE; u++)
