/* Products of matrices on one thread: c[m, n] = sum_k a[m down + k along] b[k, n], for one or two pairs of factors a, b.

   A tile of DOWN rows and ACROSS vectors of c stays in registers. Each element is summed in the order of k in tiles of all sizes. */

#include "elementary.h"

#ifdef __AVX512F__
#define VECTOR 64
#define ACROSS 3
#define DOWN 8
#else
#define VECTOR 32
#define ACROSS 2
#define DOWN 4
#endif
#define LANES ((whole)(VECTOR / sizeof(real)))
#define PANEL (ACROSS * LANES)
#define INLINE static inline __attribute__((always_inline))

typedef real vector __attribute__((vector_size(VECTOR), aligned(sizeof(real)), may_alias));

typedef struct {
    const real *a, *b;
} factors;

typedef struct {
    whole down, along, b_row, c_row, depth;
    int num_parts;
} shape;

INLINE void tile(const int rows, const int vectors, const factors *parts, const shape *s, whole m, whole n, real *c) {
    vector sums[DOWN][ACROSS];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) sums[r][v] = (vector){0};
    for (int part = 0; part < s->num_parts; part++) {
        const real *a = parts[part].a + m * s->down, *b = parts[part].b + n;
        const whole down = s->down, along = s->along, b_row = s->b_row;
        for (whole k = 0; k < s->depth; k++, a += along, b += b_row) {
            vector of_b[ACROSS];
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++) of_b[v] = *(const vector *)(b + v * LANES);
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
                for (int v = 0; v < vectors; v++) sums[r][v] += a[r * down] * of_b[v];
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) *(vector *)(c + (m + r) * s->c_row + n + v * LANES) = sums[r][v];
}

INLINE void rows_of_panel(const int vectors, const factors *parts, const shape *s, whole rows, whole n, real *c) {
    whole m = 0;
    for (; m + DOWN <= rows; m += DOWN) tile(DOWN, vectors, parts, s, m, n, c);
    if (DOWN > 4 && m + 4 <= rows) tile(4, vectors, parts, s, m, n, c), m += 4;
    if (m + 2 <= rows) tile(2, vectors, parts, s, m, n, c), m += 2;
    if (m < rows) tile(1, vectors, parts, s, m, n, c);
}

static void panel(const factors *parts, const shape *s, whole rows, whole n, whole columns, real *c) {
    const whole left = (columns - n < PANEL ? columns - n : PANEL), vectors = left / LANES;
    if (ACROSS > 2 && vectors == 3) rows_of_panel(ACROSS > 2 ? 3 : 2, parts, s, rows, n, c);
    if (vectors == 2) rows_of_panel(2, parts, s, rows, n, c);
    if (vectors == 1) rows_of_panel(1, parts, s, rows, n, c);
    for (whole column = n + vectors * LANES; column < n + left; column++)
        for (whole m = 0; m < rows; m++) {
            real sum = 0;
            for (int part = 0; part < s->num_parts; part++)
                for (whole k = 0; k < s->depth; k++)
                    sum += parts[part].a[m * s->down + k * s->along] * parts[part].b[k * s->b_row + column];
            c[m * s->c_row + column] = sum;
        }
}

/* Rows (rows, depth) times a matrix (depth, columns). */
static void rows_times(const real *a, whole rows, const real *b, whole depth, whole columns, real *c) {
    const factors parts[1] = {{a, b}};
    const shape s = {.down = depth, .along = 1, .b_row = columns, .c_row = columns, .depth = depth, .num_parts = 1};
    for (whole n = 0; n < columns; n += PANEL) panel(parts, &s, rows, n, columns, c);
}

static void transpose(const real *matrix, whole rows, whole columns, real *result) {
    whole row = 0;
    for (; row + LANES <= rows; row += LANES)
        for (whole column = 0; column < columns; column++) {
            const real *from = matrix + row * columns + column;
            real *to = result + column * rows + row;
            for (whole k = 0; k < LANES; k++) to[k] = from[k * columns];
        }
    for (; row < rows; row++)
        for (whole column = 0; column < columns; column++) result[column * rows + row] = matrix[row * columns + column];
}
