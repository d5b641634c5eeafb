/* The sums of edge_products.py over the edges of one atom after another, with nothing of the size of edges times components in
   memory. Sums run in the order of the edges, whatever the number of threads.

   REAL is float or double; a row has LANES * VECTORS channels, which are summed LANES at a time. N atoms, E edges, Q pairs.
   Weights are those of pairs (Q, paths, channels), numbers those of edges (E, entries). A layout is a list of numbers: blocks;
   then for each block its components A and its paths; then for each path its components, and for each of these three numbers r,
   s, o: its row of the results of atom n is  N r + s n + o. */

#include "rows.h"

#define PARTS for (int v = 0; v < VECTORS; v++)

typedef struct {
    const whole *layout, *first_edge, *senders, *reverse_edge, *pair_of_edge, *first_of_pair, *second_of_pair;
    whole num_atoms, num_edges, num_pairs, num_features, num_paths, num_entries, num_results;
    int num_threads;
} edges;

static inline whole end_of(const edges *g, whole atom) {
    return atom + 1 < g->num_atoms ? g->first_edge[atom + 1] : g->num_edges;
}

static inline whole place_of(const edges *g, const whole *numbers, whole atom) {
    return g->num_atoms * numbers[0] + numbers[1] * atom + numbers[2];
}

static inline const whole *next_path(const whole *path) { return path + 1 + 3 * *path; }

static inline whole num_results_of(const whole *path, whole num_paths) {
    whole number = 0;
    for (; num_paths; num_paths--, path = next_path(path)) number += *path;
    return number;
}

static void push_to(const edges *g, whole i, whole num_parts, const row *const *weights, const row *const *features,
                    const real *numbers, row *results, row *sums) {
    memset(sums, 0, g->num_results * sizeof(row));
    for (whole e = g->first_edge[i], end = end_of(g, i); e < end; e++) {
        const whole *layout = g->layout, num_blocks = *layout++, of_pair = g->pair_of_edge[e] * g->num_paths;
        const real *number = numbers + e * g->num_entries;
        whole first_path = 0, component = 0;
        row *first_sum = sums;
        for (whole block = 0; block < num_blocks; block++) {
            const whole dimension = *layout++, num_paths = *layout++;
            const whole *path = layout;
            for (whole a = 0; a < dimension; a++, component++) {
                const whole of_sender = component * g->num_atoms + g->senders[e];
                row *sum = first_sum;
                path = layout;
                for (whole p = 0; p < num_paths; sum += *path, number += *path, path = next_path(path), p++) {
                    const whole of_path = of_pair + first_path + p, width = *path;
                    PARTS {
                        vector product = weights[0][of_path].part[v] * features[0][of_sender].part[v];
                        for (whole part = 1; part < num_parts; part++)
                            product += weights[part][of_path].part[v] * features[part][of_sender].part[v];
                        for (whole k = 0; k < width; k++) sum[k].part[v] += number[k] * product;
                    }
                }
            }
            first_sum += num_results_of(layout, num_paths), first_path += num_paths, layout = path;
        }
    }
    const whole *layout = g->layout, num_blocks = *layout++;
    const row *sum = sums;
    for (whole block = 0; block < num_blocks; block++) {
        const whole num_paths = (layout++, *layout++);
        for (whole p = 0; p < num_paths; p++, layout = next_path(layout))
            for (whole k = 0; k < *layout; k++) results[place_of(g, layout + 1 + 3 * k, i)] = *sum++;
    }
}

/* Results of all products of several weights and features. */
void push(const edges *g, whole num_parts, const row *const *weights, const row *const *features, const real *numbers,
          row *results) {
#pragma omp parallel num_threads(g->num_threads)
    {
        row *sums = malloc(g->num_results * sizeof(row)); /* not on the stack, which may be small */
#pragma omp for schedule(static)
        for (whole i = 0; i < g->num_atoms; i++) push_to(g, i, num_parts, weights, features, numbers, results, sums);
        free(sums);
    }
}

static void pull_to(const edges *g, whole j, const row *weights, const row *features, const real *numbers, const row *results,
                    row *of_edges, row *by_features, row *sums) {
    row *own = sums + g->num_features;
    memset(sums, 0, 2 * g->num_features * sizeof(row));
    if (features)
        for (whole a = 0; a < g->num_features; a++) own[a] = features[a * g->num_atoms + j];
    for (whole received = g->first_edge[j], end = end_of(g, j); received < end; received++) {
        const whole e = g->reverse_edge[received], i = g->senders[received], of_pair = g->pair_of_edge[e] * g->num_paths;
        const whole *layout = g->layout, num_blocks = *layout++;
        const real *number = numbers + e * g->num_entries;
        whole path = 0, component = 0;
        for (whole block = 0; block < num_blocks; block++) {
            const whole dimension = *layout++, num_paths = *layout++, num_results = num_results_of(layout, num_paths);
            const real *first = number;
            for (whole p = 0; p < num_paths; p++, path++, first += *layout, layout = next_path(layout)) {
                const whole width = *layout;
                const row *gradients[width];
                for (whole k = 0; k < width; k++) gradients[k] = results + place_of(g, layout + 1 + 3 * k, i);
                PARTS {
                    vector by_weight = {0};
                    const vector weight = weights ? weights[of_pair + path].part[v] : by_weight;
                    for (whole a = 0; a < dimension; a++) {
                        vector y = {0};
                        for (whole k = 0; k < width; k++) y += first[a * num_results + k] * gradients[k]->part[v];
                        by_weight += own[component + a].part[v] * y;
                        sums[component + a].part[v] += weight * y;
                    }
                    if (features) of_edges[e * g->num_paths + path].part[v] = by_weight;
                }
            }
            component += dimension, number += dimension * num_results;
        }
    }
    if (weights)
        for (whole a = 0; a < g->num_features; a++) by_features[a * g->num_atoms + j] = sums[a];
}

/* By weights, if there are features; by features, if there are weights. Edges are taken by their senders; `of_edges` (E, paths)
   holds what belongs to each edge, before that of both directions is added. */
void pull(const edges *g, const row *weights, const row *features, const real *numbers, const row *results, row *of_edges,
          row *by_weights, row *by_features) {
#pragma omp parallel num_threads(g->num_threads)
    {
        row *sums = malloc(2 * g->num_features * sizeof(row));
#pragma omp for schedule(static)
        for (whole j = 0; j < g->num_atoms; j++) pull_to(g, j, weights, features, numbers, results, of_edges, by_features, sums);
        free(sums);
    }
    if (!features) return;
#pragma omp parallel for schedule(static) num_threads(g->num_threads)
    for (whole q = 0; q < g->num_pairs; q++) {
        const row *x = of_edges + g->first_of_pair[q] * g->num_paths, *y = of_edges + g->second_of_pair[q] * g->num_paths;
        for (whole p = 0; p < g->num_paths; p++)
            PARTS by_weights[q * g->num_paths + p].part[v] = x[p].part[v] + y[p].part[v];
    }
}

/* By the numbers. */
void numbers_of(const edges *g, const row *weights, const row *features, const row *results, real *numbers) {
#pragma omp parallel for schedule(static) num_threads(g->num_threads)
    for (whole i = 0; i < g->num_atoms; i++)
        for (whole e = g->first_edge[i], end = end_of(g, i); e < end; e++) {
            const whole *layout = g->layout, num_blocks = *layout++;
            const row *of_path = weights + g->pair_of_edge[e] * g->num_paths;
            real *number = numbers + e * g->num_entries;
            whole component = 0;
            for (whole block = 0; block < num_blocks; block++) {
                const whole dimension = *layout++, num_paths = *layout++;
                const whole *path = layout;
                for (whole a = 0; a < dimension; a++, component++) {
                    const row *feature = features + component * g->num_atoms + g->senders[e];
                    path = layout;
                    for (whole p = 0; p < num_paths; path = next_path(path), p++) {
                        row product;
                        PARTS product.part[v] = of_path[p].part[v] * feature->part[v];
                        for (whole k = 0; k < *path; k++) {
                            const row *gradient = results + place_of(g, path + 1 + 3 * k, i);
                            vector total = {0};
                            PARTS total += product.part[v] * gradient->part[v];
                            real sum = 0;
                            for (int lane = 0; lane < LANES; lane++) sum += total[lane];
                            *number++ = sum;
                        }
                    }
                }
                of_path += num_paths, layout = path;
            }
        }
}
