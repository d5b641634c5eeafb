/* The sums of edge_products.py over the edges of one atom after another, with nothing of the size of edges times components in
   memory. Sums run in the order of the edges, whatever the number of threads. A push goes through an atom's edges for each
   path, so that the sums of its results stay in registers.

   REAL is float or double; a row has LANES * VECTORS channels, which are summed LANES at a time. N atoms, E edges, Q pairs.
   Weights are those of pairs (Q, paths, channels), numbers those of edges (E, entries). A layout is a list of numbers: blocks;
   then for each block its components A and its paths; then for each path its components, at most WIDEST, and for each of these
   three numbers r, s, o: its row of the results of atom n is  N r + s n + o. */

#include "rows.h"

typedef struct {
    const whole *layout, *first_edge, *senders, *reverse_edge, *pair_of_edge, *first_of_pair, *second_of_pair;
    whole num_atoms, num_edges, num_pairs, num_features, num_paths, num_entries;
    int num_threads;
} edges;

static inline whole end_of(const edges *g, whole atom) {
    return atom + 1 < g->num_atoms ? g->first_edge[atom + 1] : g->num_edges;
}

static inline whole place_of(const edges *g, const whole *numbers, whole atom) {
    return g->num_atoms * numbers[0] + numbers[1] * atom + numbers[2];
}

typedef struct {
    whole width;     /* components of the results */
    whole dimension; /* and of the features */
    whole feature;   /* the first of these */
    whole entry;     /* the first number of an edge */
    whole step;      /* from there to that of the next component of the features */
    const whole *places;
} path;

static path *paths_of(const edges *g) {
    path *paths = malloc(g->num_paths * sizeof(path)), *p = paths;
    const whole *layout = g->layout;
    whole feature = 0, first_entry = 0;
    for (whole num_blocks = *layout++; num_blocks; num_blocks--) {
        const whole dimension = *layout++;
        path *const first = p;
        whole entry = first_entry;
        for (whole num_paths = *layout++; num_paths; num_paths--, entry += *layout, layout += 1 + 3 * *layout)
            *p++ = (path){.width = *layout, .dimension = dimension, .feature = feature, .entry = entry, .places = layout + 1};
        for (path *q = first; q < p; q++) q->step = entry - first_entry;
        feature += dimension, first_entry += dimension * (entry - first_entry);
    }
    return paths;
}

/* Widths are constants within a function, whose arrays are registers then. */
#define WIDEST 13 /* l up to 6 */
#define OF_WIDTH(w, function, ...)                                                                                             \
    switch (w) {                                                                                                               \
    case 1: function(1, __VA_ARGS__); break;                                                                                   \
    case 3: function(3, __VA_ARGS__); break;                                                                                   \
    case 5: function(5, __VA_ARGS__); break;                                                                                   \
    case 7: function(7, __VA_ARGS__); break;                                                                                   \
    case 9: function(9, __VA_ARGS__); break;                                                                                   \
    case 11: function(11, __VA_ARGS__); break;                                                                                 \
    case 13: function(13, __VA_ARGS__); break;                                                                                 \
    default: function(w, __VA_ARGS__);                                                                                         \
    }
#define COMPONENTS _Pragma("GCC unroll 13") for (whole k = 0; k < width; k++)

INLINE void push_along(const whole width, const edges *g, const path *p, whole number, int v, whole i, whole num_parts,
                       const row *const *weights, const row *const *features, const real *numbers, row *results) {
    vector sums[WIDEST][AT_ONCE];
    COMPONENTS THESE sums[k][u] = (vector){0};
    for (whole e = g->first_edge[i], end = end_of(g, i); e < end; e++) {
        const whole of_path = g->pair_of_edge[e] * g->num_paths + number, of_sender = p->feature * g->num_atoms + g->senders[e];
        const real *entry = numbers + e * g->num_entries + p->entry;
        for (whole a = 0; a < p->dimension; a++, entry += p->step) {
            const whole of_feature = of_sender + a * g->num_atoms;
            vector product[AT_ONCE];
            THESE product[u] = weights[0][of_path].part[v + u] * features[0][of_feature].part[v + u];
            for (whole part = 1; part < num_parts; part++)
                THESE product[u] += weights[part][of_path].part[v + u] * features[part][of_feature].part[v + u];
            COMPONENTS THESE sums[k][u] += entry[k] * product[u];
        }
    }
    COMPONENTS THESE results[place_of(g, p->places + 3 * k, i)].part[v + u] = sums[k][u];
}

/* Results of all products of several weights and features. */
void push(const edges *g, whole num_parts, const row *const *weights, const row *const *features, const real *numbers,
          row *results) {
    path *paths = paths_of(g);
#pragma omp parallel for schedule(static) num_threads(g->num_threads)
    for (whole i = 0; i < g->num_atoms; i++)
        for (whole n = 0; n < g->num_paths; n++)
            SOME OF_WIDTH(paths[n].width, push_along, g, paths + n, n, v, i, num_parts, weights, features, numbers, results)
    free(paths);
}

INLINE void pull_along(const whole width, const edges *g, const path *p, whole number, whole e, whole j, whole i,
                       const row *weights, const row *features, const real *numbers, const row *results, row *of_edges,
                       row *sums) {
    const whole of_path = g->pair_of_edge[e] * g->num_paths + number, own = p->feature * g->num_atoms + j;
    const row *rows[WIDEST];
    COMPONENTS rows[k] = results + place_of(g, p->places + 3 * k, i);
    SOME {
        const real *entry = numbers + e * g->num_entries + p->entry;
        vector gradients[WIDEST][AT_ONCE], by_weight[AT_ONCE];
        THESE by_weight[u] = (vector){0};
        COMPONENTS THESE gradients[k][u] = rows[k]->part[v + u];
        for (whole a = 0; a < p->dimension; a++, entry += p->step) {
            vector y[AT_ONCE];
            THESE y[u] = (vector){0};
            COMPONENTS THESE y[u] += entry[k] * gradients[k][u];
            if (features) THESE by_weight[u] += features[own + a * g->num_atoms].part[v + u] * y[u];
            if (weights) THESE sums[p->feature + a].part[v + u] += weights[of_path].part[v + u] * y[u];
        }
        if (features) THESE of_edges[e * g->num_paths + number].part[v + u] = by_weight[u];
    }
}

/* By weights, if there are features; by features, if there are weights. Edges are taken by their senders; `of_edges` (E, paths)
   holds what belongs to each edge, before that of both directions is added. */
void pull(const edges *g, const row *weights, const row *features, const real *numbers, const row *results, row *of_edges,
          row *by_weights, row *by_features) {
    path *paths = paths_of(g);
#pragma omp parallel num_threads(g->num_threads)
    {
        row *sums = calloc(g->num_features, sizeof(row)); /* not on the stack, which may be small */
#pragma omp for schedule(static)
        for (whole j = 0; j < g->num_atoms; j++) {
            for (whole received = g->first_edge[j], end = end_of(g, j); received < end; received++) {
                const whole e = g->reverse_edge[received], i = g->senders[received];
                for (whole n = 0; n < g->num_paths; n++)
                    OF_WIDTH(paths[n].width, pull_along, g, paths + n, n, e, j, i, weights, features, numbers, results,
                             of_edges, sums)
            }
            for (whole a = 0; weights && a < g->num_features; a++) {
                by_features[a * g->num_atoms + j] = sums[a];
                sums[a] = (row){0};
            }
        }
        free(sums);
    }
    free(paths);
    if (!features) return;
#pragma omp parallel for schedule(static) num_threads(g->num_threads)
    for (whole q = 0; q < g->num_pairs; q++) {
        const row *x = of_edges + g->first_of_pair[q] * g->num_paths, *y = of_edges + g->second_of_pair[q] * g->num_paths;
        for (whole p = 0; p < g->num_paths; p++)
            PARTS by_weights[q * g->num_paths + p].part[v] = x[p].part[v] + y[p].part[v];
    }
}

INLINE void numbers_along(const whole width, const edges *g, const path *p, whole number, whole i, const row *weights,
                          const row *features, const row *results, real *numbers) {
    for (whole e = g->first_edge[i], end = end_of(g, i); e < end; e++) {
        const row *weight = weights + g->pair_of_edge[e] * g->num_paths + number;
        const row *feature = features + p->feature * g->num_atoms + g->senders[e];
        real *entry = numbers + e * g->num_entries + p->entry;
        for (whole a = 0; a < p->dimension; a++, feature += g->num_atoms, entry += p->step) {
            row product;
            PARTS product.part[v] = weight->part[v] * feature->part[v];
            COMPONENTS {
                const row *gradient = results + place_of(g, p->places + 3 * k, i);
                vector total = {0};
                PARTS total += product.part[v] * gradient->part[v];
                real sum = 0;
                for (int lane = 0; lane < LANES; lane++) sum += total[lane];
                entry[k] = sum;
            }
        }
    }
}

/* By the numbers. */
void numbers_of(const edges *g, const row *weights, const row *features, const row *results, real *numbers) {
    path *paths = paths_of(g);
#pragma omp parallel for schedule(static) num_threads(g->num_threads)
    for (whole i = 0; i < g->num_atoms; i++)
        for (whole n = 0; n < g->num_paths; n++)
            OF_WIDTH(paths[n].width, numbers_along, g, paths + n, n, i, weights, features, results, numbers)
    free(paths);
}
