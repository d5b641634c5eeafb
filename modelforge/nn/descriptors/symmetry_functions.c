/* The symmetry functions of symmetry_functions.py, their Jacobian J times directions, and J^T times gradients, atom by atom.
   Triples are pairs of an atom's near edges. Nothing of their number is in memory: they come in blocks, computed anew each time.

   REAL is float or double; NUM_RADIAL, NUM_SHELLS and NUM_ANGLES are R, A and T. N atoms, E edges, Z elements, P pairs of them.
   Vectors are (E, 3), functions (N, Z R + P A T). Sums run in the order of the edges, whatever the number of threads. */

#include <math.h>
#include <stddef.h>
#include <string.h>

#include "elementary.h"

#define R NUM_RADIAL
#define A NUM_SHELLS
#define T NUM_ANGLES
#define AT (A * T)
#define BLOCK 16 /* triples */
#define LANES 16 /* numbers of edges are made multiples of it */
#define ROW 8    /* of an edge: u, 1, f of the angular part, d, and zeros; or what belongs to the first five */
#define COSINE_FACTOR ((real)0.95)
#define SMALLEST_SQUARE ((real)1e-20)

typedef struct {
    const whole *first_edge, *senders, *elements;
    whole num_atoms, num_edges, num_elements;
    double cutoff, angular_cutoff, first_shift, radial_eta, angular_eta, zeta;
    int num_threads;
} surroundings;

/* What all atoms share: shifts of distances and mean distances, half the cosines and sines of the angles. */
typedef struct {
    real shifts[R], shells[A], half_cosines[T], half_sines[T];
} steps;

static steps steps_of(const surroundings *s) {
    steps found;
    for (int r = 0; r < R; r++) found.shifts[r] = s->first_shift + r * (s->cutoff - s->first_shift) / R;
    for (int a = 0; a < A; a++) found.shells[a] = s->first_shift + a * (s->angular_cutoff - s->first_shift) / A;
    for (int t = 0; t < T; t++) {
        const double angle = (t + 0.5) * PI / T;
        found.half_cosines[t] = 0.5 * cos(angle), found.half_sines[t] = 0.5 * sin(angle);
    }
    return found;
}

/* The edges that an atom receives. */
enum { X, Y, Z, DISTANCE, FAR, FAR_SLOPE, NEAR, NEAR_SLOPE, NUM_FIELDS };

typedef struct {
    const surroundings *all;
    const steps *steps;
    whole begin, num, room, num_near;
    real *fields;       /* (NUM_FIELDS, room) */
    real *gaussians;    /* (room, R) of the radial part, then what is made of them */
    real *rows, *other; /* (room, ROW); others are derivatives of rows, or by rows */
    whole *near;        /* (room,) the edges of the angular part */
    whole *elements;    /* (room,) of the senders */
    const real *by_values;
    real *values; /* of the angular part, (P, A, T) */
} atom;

static whole length_of(const surroundings *s) { return s->num_elements * R + s->num_elements * (s->num_elements + 1) / 2 * AT; }

static whole num_received(const surroundings *s, whole i) {
    return (i + 1 < s->num_atoms ? s->first_edge[i + 1] : s->num_edges) - s->first_edge[i];
}

static real *field(const atom *i, int name) { return i->fields + name * i->room; }

static void read_edges(atom *i, const real *vectors) {
    const surroundings *s = i->all;
    const real cutoff = s->cutoff, angular_cutoff = s->angular_cutoff;
    real *restrict x = field(i, X), *restrict y = field(i, Y), *restrict z = field(i, Z), *restrict d = field(i, DISTANCE);
    real *restrict far = field(i, FAR), *restrict far_slope = field(i, FAR_SLOPE);
    real *restrict near = field(i, NEAR), *restrict near_slope = field(i, NEAR_SLOPE);
    for (whole e = 0; e < i->room; e++) {
        const real *vector = vectors + 3 * (i->begin + e);
        x[e] = e < i->num ? vector[0] : 1, y[e] = e < i->num ? vector[1] : 0, z[e] = e < i->num ? vector[2] : 0;
    }
    for (whole e = 0; e < i->room; e++) {
        const real square = x[e] * x[e] + y[e] * y[e] + z[e] * z[e];
        d[e] = sqrt(square < SMALLEST_SQUARE ? SMALLEST_SQUARE : square);
        const real inverse = 1 / d[e];
        x[e] *= inverse, y[e] *= inverse, z[e] *= inverse;
    }
    for (whole e = 0; e < i->room; e++) envelope(d[e], cutoff, far + e, far_slope + e);
    for (whole e = 0; e < i->room; e++) envelope(d[e], angular_cutoff, near + e, near_slope + e);
    i->num_near = 0;
    for (whole e = 0; e < i->num; e++) {
        i->elements[e] = s->elements[s->senders[i->begin + e]];
        const real row[ROW] = {x[e], y[e], z[e], 1, near[e], d[e], 0, 0};
        memcpy(i->rows + e * ROW, row, sizeof(row));
        if (d[e] < angular_cutoff) i->near[i->num_near++] = e;
    }
}

/* Gaussians of the radial part times f, or the derivatives by the distances of these products. */
static void read_radial(const atom *i, int is_slope) {
    const real rate = -i->all->radial_eta * LOG2_E, slope = -2 * i->all->radial_eta;
    const real *distance = field(i, DISTANCE), *value = field(i, FAR), *value_slope = field(i, FAR_SLOPE);
    real *restrict gaussians = i->gaussians;
    real offsets[i->room * R];
    for (whole e = 0; e < i->room; e++)
        for (int r = 0; r < R; r++) offsets[e * R + r] = distance[e] - i->steps->shifts[r];
    for (whole k = 0; k < i->room * R; k++) gaussians[k] = (real)0.25 * power_of_two(rate * offsets[k] * offsets[k]);
    for (whole e = 0; e < i->room; e++)
        for (int r = 0; r < R; r++)
            gaussians[e * R + r] *= is_slope ? value_slope[e] + slope * offsets[e * R + r] * value[e] : value[e];
}

/* Some triples, and of each: c, m, w, then A and A' of all shells, B w, B' w and B of all angles. */
typedef struct {
    int num;
    whole first[BLOCK], second[BLOCK], column[BLOCK];
    real cosine[BLOCK], mean_distance[BLOCK], envelope[BLOCK];
    real shells[BLOCK * A], shell_slopes[BLOCK * A], weighted[BLOCK * T], angle_slopes[BLOCK * T], angles[BLOCK * T];
} block;

static void evaluate(const surroundings *s, const steps *steps, block *b) {
    const real eta = s->angular_eta, zeta = s->zeta;
    real offsets[BLOCK * A], slopes[BLOCK * T], sines[BLOCK], ratios[BLOCK];
    for (int n = 0; n < BLOCK; n++)
        for (int a = 0; a < A; a++) offsets[n * A + a] = b->mean_distance[n] - steps->shells[a];
    for (int k = 0; k < BLOCK * A; k++) {
        const real offset = offsets[k], gaussian = power_of_two(-eta * LOG2_E * offset * offset);
        b->shells[k] = gaussian, b->shell_slopes[k] = -2 * eta * offset * gaussian;
    }
    for (int n = 0; n < BLOCK; n++) {
        const real c = COSINE_FACTOR * b->cosine[n], sine = sizeof(real) == 8 ? sqrt(1 - c * c) : sqrtf(1 - c * c);
        sines[n] = sine, ratios[n] = c / sine, b->cosine[n] = c;
    }
    for (int n = 0; n < BLOCK; n++)
        for (int t = 0; t < T; t++) {
            b->angles[n * T + t] = (real)0.5 + steps->half_cosines[t] * b->cosine[n] + steps->half_sines[t] * sines[n];
            slopes[n * T + t] = steps->half_cosines[t] - steps->half_sines[t] * ratios[n];
        }
    for (int k = 0; k < BLOCK * T; k++) {
        const real nearness = b->angles[k], power = 2 * power_of_two(zeta * logarithm(nearness));
        b->angles[k] = power, b->angle_slopes[k] = COSINE_FACTOR * zeta * slopes[k] * power / nearness;
    }
    for (int n = 0; n < BLOCK; n++)
        for (int t = 0; t < T; t++)
            b->weighted[n * T + t] = b->angles[n * T + t] * b->envelope[n], b->angle_slopes[n * T + t] *= b->envelope[n];
}

static void add_values(const atom *i, const block *b) {
    for (int n = 0; n < b->num; n++) {
        real *sums = i->values + b->column[n];
        for (int a = 0; a < A; a++)
            for (int t = 0; t < T; t++) sums[a * T + t] += b->shells[n * A + a] * b->weighted[n * T + t];
    }
}

static void pull(const atom *i, const block *b) {
    for (int n = 0; n < b->num; n++) {
        const real *g = i->by_values + b->column[n];
        real of_shells[T] = {0}, of_slopes[T] = {0}, by_cosine = 0, by_mean = 0, by_envelope = 0;
        for (int a = 0; a < A; a++)
            for (int t = 0; t < T; t++) {
                of_shells[t] += g[a * T + t] * b->shells[n * A + a];
                of_slopes[t] += g[a * T + t] * b->shell_slopes[n * A + a];
            }
        for (int t = 0; t < T; t++) {
            by_cosine += of_shells[t] * b->angle_slopes[n * T + t];
            by_mean += of_slopes[t] * b->weighted[n * T + t];
            by_envelope += of_shells[t] * b->angles[n * T + t];
        }
        by_mean *= (real)0.5;
        const real by_products[ROW] = {by_cosine, by_cosine, by_cosine, by_mean, by_envelope, 0, 0, 0};
        const real *first = i->rows + b->first[n] * ROW, *second = i->rows + b->second[n] * ROW;
        real *by_first = i->other + b->first[n] * ROW, *by_second = i->other + b->second[n] * ROW;
        for (int k = 0; k < ROW; k++) by_first[k] += by_products[k] * second[k], by_second[k] += by_products[k] * first[k];
    }
}

static void push(const atom *i, const block *b) {
    for (int n = 0; n < b->num; n++) {
        const real *x = i->rows + b->first[n] * ROW, *y = i->rows + b->second[n] * ROW;
        const real *dx = i->other + b->first[n] * ROW, *dy = i->other + b->second[n] * ROW;
        real products[ROW], angles[T], shells[A];
        for (int k = 0; k < ROW; k++) products[k] = x[k] * dy[k] + y[k] * dx[k];
        const real cosine = products[0] + products[1] + products[2], mean_distance = (real)0.5 * products[3];
        for (int t = 0; t < T; t++) angles[t] = b->angle_slopes[n * T + t] * cosine + b->angles[n * T + t] * products[4];
        for (int a = 0; a < A; a++) shells[a] = b->shell_slopes[n * A + a] * mean_distance;
        real *sums = i->values + b->column[n];
        for (int a = 0; a < A; a++)
            for (int t = 0; t < T; t++)
                sums[a * T + t] += b->shells[n * A + a] * angles[t] + shells[a] * b->weighted[n * T + t];
    }
}

static void each_block(const atom *i, void (*use)(const atom *, const block *)) {
    const whole num_elements = i->all->num_elements;
    block b = {0};
    for (whole j = 0; j < i->num_near; j++)
        for (whole k = j + 1; k < i->num_near; k++) {
            const whole first = i->near[j], second = i->near[k], x = i->elements[first], y = i->elements[second];
            const whole low = x < y ? x : y, high = x < y ? y : x;
            const real *u = i->rows + first * ROW, *v = i->rows + second * ROW;
            b.first[b.num] = first, b.second[b.num] = second;
            b.column[b.num] = (low * (2 * num_elements - 1 - low) / 2 + high) * AT;
            b.cosine[b.num] = u[0] * v[0] + u[1] * v[1] + u[2] * v[2], b.envelope[b.num] = u[4] * v[4];
            b.mean_distance[b.num++] = (real)0.5 * (u[5] + v[5]);
            if (b.num == BLOCK || (j == i->num_near - 2)) evaluate(i->all, i->steps, &b), use(i, &b), b.num = 0;
        }
}

/* Runs `of_atom` with the edges of one atom after another read into memory of its own. */
static void each_atom(const surroundings *s, const real *vectors, const real *given, real *found,
                      void (*of_atom)(atom *, whole, const real *, real *)) {
    const steps steps = steps_of(s);
#pragma omp parallel for schedule(static) num_threads(s->num_threads)
    for (whole n = 0; n < s->num_atoms; n++) {
        const whole num = num_received(s, n), room = num ? (num + LANES - 1) / LANES * LANES : LANES;
        real fields[NUM_FIELDS * room], gaussians[room * R], rows[room * ROW], other[room * ROW];
        whole near[room], elements[room];
        atom i = {.all = s, .steps = &steps, .begin = s->first_edge[n], .num = num, .room = room};
        i.fields = fields, i.gaussians = gaussians, i.rows = rows, i.other = other, i.near = near, i.elements = elements;
        memset(other, 0, sizeof(other));
        read_edges(&i, vectors);
        of_atom(&i, n, given, found);
    }
}

static void value_atom(atom *i, whole n, const real *given, real *found) {
    (void)given;
    const whole length = length_of(i->all);
    real *values = found + n * length;
    memset(values, 0, length * sizeof(real));
    read_radial(i, 0);
    for (whole e = 0; e < i->num; e++) {
        real *sums = values + i->elements[e] * R;
        for (int r = 0; r < R; r++) sums[r] += i->gaussians[e * R + r];
    }
    i->values = values + i->all->num_elements * R;
    each_block(i, add_values);
}

static void pull_atom(atom *i, whole n, const real *by_values, real *by_vectors) {
    const whole length = length_of(i->all);
    i->by_values = by_values + n * length + i->all->num_elements * R;
    each_block(i, pull);
    read_radial(i, 1);
    for (whole e = 0; e < i->num; e++) {
        real *by_vector = by_vectors + 3 * (i->begin + e);
        const real *g = by_values + n * length + i->elements[e] * R, *u = i->rows + e * ROW, *by_row = i->other + e * ROW;
        const real distance = field(i, DISTANCE)[e];
        real along = by_row[3] + field(i, NEAR_SLOPE)[e] * by_row[4], inward = 0;
        for (int r = 0; r < R; r++) along += g[r] * i->gaussians[e * R + r];
        for (int k = 0; k < 3; k++) inward += by_row[k] * u[k];
        for (int k = 0; k < 3; k++) by_vector[k] = (by_row[k] - inward * u[k]) / distance + along * u[k];
    }
}

static void push_atom(atom *i, whole n, const real *directions, real *found) {
    const whole length = length_of(i->all);
    real *values = found + n * length;
    memset(values, 0, length * sizeof(real));
    read_radial(i, 1);
    for (whole e = 0; e < i->num; e++) {
        const real *direction = directions + 3 * (i->begin + e), *u = i->rows + e * ROW;
        real along = 0, *sums = values + i->elements[e] * R, *by_edge = i->other + e * ROW;
        for (int k = 0; k < 3; k++) along += direction[k] * u[k];
        for (int k = 0; k < 3; k++) by_edge[k] = (direction[k] - along * u[k]) / field(i, DISTANCE)[e];
        by_edge[3] = along, by_edge[4] = field(i, NEAR_SLOPE)[e] * along;
        for (int r = 0; r < R; r++) sums[r] += i->gaussians[e * R + r] * along;
    }
    i->values = values + i->all->num_elements * R;
    each_block(i, push);
}

void symmetry_values(const surroundings *s, const real *vectors, real *values) {
    each_atom(s, vectors, NULL, values, value_atom);
}

void symmetry_pulled(const surroundings *s, const real *vectors, const real *by_values, real *by_vectors) {
    each_atom(s, vectors, by_values, by_vectors, pull_atom);
}

void symmetry_pushed(const surroundings *s, const real *vectors, const real *directions, real *values) {
    each_atom(s, vectors, directions, values, push_atom);
}
