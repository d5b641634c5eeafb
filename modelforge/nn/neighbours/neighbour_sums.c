/* The two sums of neighbour_sums.py, with nothing of the size of the edges in memory. Sums run in the order of the edges, whatever
   the number of threads.

   REAL is float or double; a row has LANES * VECTORS features. N atoms, E edges, P pairs. Features are (N, components), filters
   (P, parts): a part is a number of components, one after the other, that share a filter. */

#include "rows.h"

typedef struct {
    const whole *first_edge, *senders, *pair_of_edge, *first_of_pair, *receivers, *parts;
    whole num_atoms, num_edges, num_pairs, num_parts, num_components;
    int num_threads;
} pairs;

static void add_neighbours(const pairs *g, whole i, const row *filters, const row *features, row *sums) {
    const whole end = i + 1 < g->num_atoms ? g->first_edge[i + 1] : g->num_edges;
    memset(sums, 0, g->num_components * sizeof(row));
    for (whole e = g->first_edge[i]; e < end; e++) {
        const row *x = features + g->senders[e] * g->num_components, *filter = filters + g->pair_of_edge[e] * g->num_parts;
        row *sum = sums;
        for (whole part = 0; part < g->num_parts; part++, filter++)
            for (whole c = 0; c < g->parts[part]; c++, x++, sum++)
                for (int v = 0; v < VECTORS; v++) sum->part[v] += filter->part[v] * x->part[v];
    }
}

/* sum_j f_ij x_j */
void sum_over_neighbours(const pairs *g, const row *filters, const row *features, row *sums) {
#pragma omp parallel for schedule(static) num_threads(g->num_threads)
    for (whole i = 0; i < g->num_atoms; i++) add_neighbours(g, i, filters, features, sums + i * g->num_components);
}

/* <x_i, y_j> + <x_j, y_i> of each part */
void products_of_pairs(const pairs *g, const row *x, const row *y, row *products) {
#pragma omp parallel for schedule(static) num_threads(g->num_threads)
    for (whole p = 0; p < g->num_pairs; p++) {
        const whole e = g->first_of_pair[p], i = g->receivers[e] * g->num_components, j = g->senders[e] * g->num_components;
        const row *x_i = x + i, *x_j = x + j, *y_i = y + i, *y_j = y + j;
        for (whole part = 0; part < g->num_parts; part++) {
            row total;
            memset(&total, 0, sizeof(total));
            for (whole c = 0; c < g->parts[part]; c++, x_i++, x_j++, y_i++, y_j++)
                for (int v = 0; v < VECTORS; v++)
                    total.part[v] += x_i->part[v] * y_j->part[v] + x_j->part[v] * y_i->part[v];
            products[p * g->num_parts + part] = total;
        }
    }
}
