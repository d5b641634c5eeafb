/* Rows of channels, summed LANES at a time: LANES * VECTORS numbers of type REAL, which is float or double. */

#include <stdlib.h>
#include <string.h>

typedef REAL real;
typedef long long whole;
typedef real vector __attribute__((vector_size(LANES * sizeof(real)), aligned(sizeof(real))));
typedef struct {
    vector part[VECTORS];
} row;
