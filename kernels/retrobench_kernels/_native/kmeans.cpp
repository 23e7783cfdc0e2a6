// K-means: best centroid by inner product less a bias (a matrix product that keeps only its row
// maxima), and sums per cluster. Keys come in their own dtype and are centred on the fly.
#include <algorithm>
#include <cmath>
#include <vector>
#include "simd.h"

namespace {

constexpr int KEYS = W == 16 ? 12 : 6;  // rows of the register tile; its columns are two vectors
constexpr int PANEL = 2 * W;            // centroids per panel
constexpr int TILES = 4;                // register tiles per task step: their keys stay in L1

template <class T> void centred(const T* k, const float* mean, int D, float* out) {
  alignas(64) float lanes[2 * W];
  for (int d = 0; d < D; d += 2 * W) {
    vf a, b;
    load_pair(k + d, a, b);
    store(lanes, a);
    store(lanes + W, b);
    for (int i = 0; i < 2 * W; i++) out[d + place<T>(i)] = lanes[i] - mean[d + place<T>(i)];
  }
}

// centroids [C][D] as panels [C / PANEL][D][PANEL], zero padded
void pack(const float* centroid, long C, int D, long panel, float* out) {
  for (int d = 0; d < D; d++)
    for (int j = 0; j < PANEL; j++) {
      long c = panel * PANEL + j;
      out[d * PANEL + j] = c < C ? centroid[c * D + d] : 0.f;
    }
}

// running maxima of KEYS rows x (lanes of a panel), less the centroids' biases
void tile(const float* x, const float* panel, const float* bias, long first, long C, int D,
          vf* best, vi* where) {
  vf a[KEYS][2];
  for (int i = 0; i < KEYS; i++) a[i][0] = -load(bias), a[i][1] = -load(bias + W);
  for (int d = 0; d < D; d++) {
    vf low = load(panel + d * PANEL), high = load(panel + d * PANEL + W);
    for (int i = 0; i < KEYS; i++) {
      float key = x[i * D + d];
      a[i][0] += low * key;
      a[i][1] += high * key;
    }
  }
  for (int half = 0; half < 2; half++) {
    long base = first + half * W;
    for (int i = 0; i < KEYS; i++) {
      vf score = a[i][half];
      for (long j = std::max(0L, C - base); j < W; j++) score[j] = -INFINITY;
      vi better = score > best[i];
      best[i] = better ? score : best[i];
      where[i] = better ? vi{} + (int32_t)base : where[i];
    }
  }
}

template <class T>
void assign(const T* k, const float* mean, const float* centroid, const float* bias,
            int32_t* label, long G, long S, long C, int D, const int64_t* stride, int threads) {
  long panels = (C + PANEL - 1) / PANEL, rows = KEYS * TILES, parts = (S + rows - 1) / rows;
  std::vector<float> packed(G * panels * D * PANEL), shift(G * panels * PANEL, 0.f);
  for (long g = 0; g < G; g++)
    std::copy(bias + g * C, bias + (g + 1) * C, shift.data() + g * panels * PANEL);
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(static)
    for (long i = 0; i < G * panels; i++)
      pack(centroid + i / panels * C * D, C, D, i % panels, packed.data() + i * D * PANEL);
    std::vector<float> x(rows * D);
    vf best[KEYS * TILES];
    vi where[KEYS * TILES];
#pragma omp for schedule(dynamic, 8)
    for (long i = 0; i < G * parts; i++) {
      long g = i / parts, from = i % parts * rows, n = std::min(rows, S - from);
      for (long r = 0; r < n; r++)
        centred(k + g * stride[0] + (from + r) * D, mean + g * D, D, x.data() + r * D);
      std::fill(best, best + rows, splat(-INFINITY));
      std::fill(where, where + rows, vi{});
      for (long p = 0; p < panels; p++)
        for (int t = 0; t * KEYS < n; t++)
          tile(x.data() + t * KEYS * D, packed.data() + (g * panels + p) * D * PANEL,
               shift.data() + (g * panels + p) * PANEL, p * PANEL, C, D, best + t * KEYS,
               where + t * KEYS);
      for (long r = 0; r < n; r++) {
        float most = -INFINITY;
        int32_t winner = 0;
        for (int j = 0; j < W; j++) {
          int32_t c = where[r][j] + j;
          if (best[r][j] > most || (best[r][j] == most && c < winner)) most = best[r][j], winner = c;
        }
        label[g * S + from + r] = winner;
      }
    }
  }
}

template <class T>
void sums(const T* k, const float* mean, const int32_t* label, float* total, int32_t* size, long G,
          long S, long C, int D, const int64_t* stride, int threads) {
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
  for (long g = 0; g < G; g++) {
    std::vector<float> x(D);
    std::fill(total + g * C * D, total + (g + 1) * C * D, 0.f);
    std::fill(size + g * C, size + (g + 1) * C, 0);
    for (long s = 0; s < S; s++) {
      long c = g * C + label[g * S + s];
      centred(k + g * stride[0] + s * D, mean + g * D, D, x.data());
      for (int d = 0; d < D; d++) total[c * D + d] += x[d];
      size[c]++;
    }
  }
}

template <class F> void with_type(int dtype, const void* k, const F& f) {
  if (dtype == 0) f((const float*)k);
  else if (dtype == 1) f((const bf16*)k);
  else f((const f16*)k);
}

}  // namespace

extern "C" {

void retrobench_assign(const void* k, const float* mean, const float* centroid,
                       const float* bias, int32_t* label, int64_t G, int64_t S, int64_t C, int32_t D, const int64_t* stride,
                       int32_t dtype, int32_t threads) {
  with_type(dtype, k, [&](auto* keys) {
    assign(keys, mean, centroid, bias, label, G, S, C, D, stride, threads);
  });
}

void retrobench_sums(const void* k, const float* mean, const int32_t* label, float* total,
                     int32_t* size, int64_t G, int64_t S, int64_t C, int32_t D,
                     const int64_t* stride, int32_t dtype, int32_t threads) {
  with_type(dtype, k, [&](auto* keys) {
    sums(keys, mean, label, total, size, G, S, C, D, stride, threads);
  });
}
}
