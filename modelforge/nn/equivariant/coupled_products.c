/* The sums of coupled_products.py for one atom and a few channels after another, with nothing larger than the results in memory.
   Sums run in the same order whatever the number of threads.

   REAL is float or double; a row of channels is VECTORS vectors of LANES. Factors are (components, N, channels), weights (paths,
   channels). A group is all that goes to one component of the result on one path; terms of a group stand together. */

#include "rows.h"

#define ABREAST 4
#define EACH for (int q = 0; q < ABREAST; q++)

typedef struct {
    whole path, result, end; /* of its terms */
} group;

typedef struct {
    whole left, right;
} term;

typedef struct {
    const group *groups;
    const term *terms;
    const real *coefficients;
    const whole *first_groups; /* of each path, and of the end */
    whole num_groups, num_paths, num_left, num_right, num_results, num_atoms;
    int num_threads;
} products;

typedef struct {
    vector part[ABREAST];
} few;

/* What is beyond the last place is read from it. */
static inline void gather(const vector *factor, whole components, whole across, whole place, few *into) {
    for (whole i = 0; i < components; i++, factor += across)
        EACH into[i].part[q] = factor[place + q < across ? place + q : across - 1];
}

static inline void add_terms(const products *p, whole begin, whole end, const few *left, const few *right, few *sum) {
    memset(sum, 0, sizeof(*sum));
    for (whole t = begin; t < end; t++) {
        const few *x = left + p->terms[t].left, *y = right + p->terms[t].right;
        EACH sum->part[q] += p->coefficients[t] * (x->part[q] * y->part[q]);
    }
}

/* z_k = sum over paths of w_p sum_ij c_ijk x_i y_j */
void product_of(const products *p, const vector *left, const vector *right, const vector *weights, vector *results) {
    const whole across = p->num_atoms * VECTORS;
#pragma omp parallel num_threads(p->num_threads)
    {
        few x[p->num_left], y[p->num_right], z[p->num_results];
#pragma omp for schedule(static)
        for (whole place = 0; place < across; place += ABREAST) {
            gather(left, p->num_left, across, place, x);
            gather(right, p->num_right, across, place, y);
            memset(z, 0, p->num_results * sizeof(few));
            const vector *of_place[ABREAST];
            EACH of_place[q] = weights + (place + q) % VECTORS;
            for (whole g = 0, begin = 0; g < p->num_groups; begin = p->groups[g++].end) {
                few sum;
                add_terms(p, begin, p->groups[g].end, x, y, &sum);
                few *result = z + p->groups[g].result;
                EACH result->part[q] += of_place[q][p->groups[g].path * VECTORS] * sum.part[q];
            }
            for (whole k = 0; k < p->num_results; k++)
                for (whole q = 0; q < ABREAST && place + q < across; q++) results[k * across + place + q] = z[k].part[q];
        }
    }
}

/* By the weights: sum over atoms of sum_ijk c_ijk x_i y_j z_k of each path */
void slopes_of_weights(const products *p, const vector *left, const vector *right, const vector *results, vector *slopes) {
    const whole across = p->num_atoms * VECTORS;
#pragma omp parallel for schedule(static) num_threads(p->num_threads)
    for (whole number = 0; number < p->num_paths * VECTORS; number++) {
        const whole path = number / VECTORS;
        vector total = {0};
        for (whole place = number % VECTORS; place < across; place += VECTORS)
            for (whole g = p->first_groups[path]; g < p->first_groups[path + 1]; g++) {
                vector sum = {0};
                for (whole t = g ? p->groups[g - 1].end : 0; t < p->groups[g].end; t++)
                    sum += p->coefficients[t] * (left[p->terms[t].left * across + place] * right[p->terms[t].right * across + place]);
                total += sum * results[p->groups[g].result * across + place];
            }
        slopes[number] = total;
    }
}
