/* The sums of polynomial_slopes.py: for each row r and monomial m with factors f1, f2 .., and each element z,

       s_zrm = sum over the atoms n of z of g_nr x_nf1 x_nf2 ..        channel by channel

   REAL is float or double; a row has LANES * VECTORS channels. N atoms, by element: those of z end with `ends[z]`. Arrays:
   factors (degree, R, M), gradients (N, all rows of them, channels), of which row r is `rows[r]`, x (N, components, channels),
   results (Z, R, M, channels). Sums run in the order of the atoms, whatever the number of threads. */

#include "rows.h"

typedef struct {
    const whole *factors, *rows, *atoms, *ends;
    whole num_rows, num_monomials, degree, num_elements, num_gradients, num_components;
    int num_threads;
} monomials;

#define MOST 8 /* monomials whose sums stay in registers */
#define MONOMIALS _Pragma("GCC unroll 8") for (whole k = 0; k < num; k++)
#define FACTORS _Pragma("GCC unroll 3") for (whole d = 0; d < degree; d++)

/* Of the monomials from m on, all atoms and the vectors from v on. Their number is a constant where it is inlined, and
   the degree up to 3. */
INLINE void sums_of(const whole num, const whole degree, const monomials *p, whole r, whole m, int v, const row *gradients,
                    const row *x, row *results) {
    const whole *first = p->factors + r * p->num_monomials + m, next_factor = p->num_rows * p->num_monomials;
    const row *gradient = gradients + p->rows[r];
    for (whole z = 0, place = 0; z < p->num_elements; z++, results += next_factor) {
        vector sums[MOST][AT_ONCE];
        MONOMIALS THESE sums[k][u] = (vector){0};
        for (; place < p->ends[z]; place++) {
            const row *of_atom = x + p->atoms[place] * p->num_components, *g = gradient + p->atoms[place] * p->num_gradients;
            MONOMIALS {
                vector product[AT_ONCE];
                THESE product[u] = g->part[v + u];
                FACTORS THESE product[u] *= of_atom[first[d * next_factor + k]].part[v + u];
                THESE sums[k][u] += product[u];
            }
        }
        MONOMIALS THESE results[r * p->num_monomials + m + k].part[v + u] = sums[k][u];
    }
}

#define OF_DEGREE(num)                                                                                                         \
    switch (p->degree) {                                                                                                       \
    case 1: sums_of(num, 1, p, r, m, v, gradients, x, results); break;                                                         \
    case 2: sums_of(num, 2, p, r, m, v, gradients, x, results); break;                                                         \
    case 3: sums_of(num, 3, p, r, m, v, gradients, x, results); break;                                                         \
    default: sums_of(num, p->degree, p, r, m, v, gradients, x, results);                                                       \
    }

void slopes(const monomials *p, const row *gradients, const row *x, row *results) {
#pragma omp parallel for schedule(static) num_threads(p->num_threads)
    for (whole r = 0; r < p->num_rows; r++)
        SOME {
            whole m = 0;
            for (; m + MOST <= p->num_monomials; m += MOST) OF_DEGREE(MOST)
            if (m + 4 <= p->num_monomials) {
                OF_DEGREE(4)
                m += 4;
            }
            for (; m < p->num_monomials; m++) OF_DEGREE(1)
        }
}
