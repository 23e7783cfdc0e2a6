// Scoring of centroids (RetroInfer) and of page bounds (Quest), and selection by exact cuts.
#include "arguments.h"
#include "scores.h"
#include "select.h"

namespace {

constexpr long SCORE_ROWS = 1024;  // rows scored per task

struct Scratch {
  Selector selector;
  std::vector<float> masked, mass, weight;
  std::vector<uint32_t> key;
};

// Sum over the group of each head's softmax over the non-empty clusters (a cluster counts once, or
// `sized`, for each of its tokens), as sortable keys.
void rank_clusters(const float* logit, long C, int group, const int32_t* size, bool sized, long n,
                   Scratch& s) {
  long width = padded(n), whole = n / W * W;
  s.masked.resize(width);
  s.mass.assign(width, 0.f);
  s.key.resize(width);
  s.weight.assign(width, 0.f);  // 0: not there
  for (long i = 0; i < n; i++) s.weight[i] = size[i] <= 0 ? 0.f : sized ? size[i] : 1.f;
  for (int h = 0; h < group; h++) {
    const float* x = logit + h * C;
    vf top = splat(LOWEST);
    for (long i = 0; i < width; i += W) {
      vf now{};
      if (i < whole) now = load(x + i);
      else for (long j = i; j < n; j++) now[j - i] = x[j];
      now = load(&s.weight[i]) > 0.f ? now : splat(-INFINITY);
      store(&s.masked[i], now);
      top = vmax(top, now);
    }
    float most = LOWEST, total = 0;
    for (int j = 0; j < W; j++) most = std::max(most, top[j]);
    vf sum = vf{};
    for (long i = 0; i < width; i += W) {
      vf p = vexp(load(&s.masked[i]) - most) * load(&s.weight[i]);
      store(&s.masked[i], p);
      sum += p;
    }
    for (int j = 0; j < W; j++) total += sum[j];
    float inverse = total > 0 ? 1 / total : 0;
    for (long i = 0; i < width; i += W)
      store(&s.mass[i], load(&s.mass[i]) + load(&s.masked[i]) * inverse);
  }
  for (long i = 0; i < width; i += W) {
    vu key = (vu)load(&s.mass[i]) + 1;  // no score is negative: in the same order, above ABSENT
    *(vu_u*)&s.key[i] = load(&s.weight[i]) > 0.f ? key : vu{} + ABSENT;
  }
}

// Keeps the best of the chosen clusters (-1: none) that have no more than `limit` tokens together,
// at least one, and moves the others to the next ones in place of the weakest of those.
void trim(long limit, int32_t* chosen, long R, int32_t* next, long E, long e, const uint32_t* key,
          const int32_t* size) {
  auto better = [&](int32_t a, int32_t b) { return key[a] > key[b]; };
  long count = std::find(chosen, chosen + R, -1) - chosen, tokens = 0, kept = 0;
  std::stable_sort(chosen, chosen + count, better);
  while (kept < count && (tokens += size[chosen[kept]]) <= limit) kept++;
  kept = std::max(kept, std::min(1L, count));
  std::vector<int32_t> rest(chosen + kept, chosen + count);
  std::fill(chosen + kept, chosen + R, -1);
  rest.insert(rest.end(), next, std::find(next, next + E, -1));
  long wanted = std::min({e, E, (long)rest.size()});
  std::nth_element(rest.begin(), rest.begin() + wanted, rest.end(), better);
  std::fill(std::copy(rest.begin(), rest.begin() + wanted, next), next + E, -1);
}

template <class T>
void clusters(const Select& s, const float* q, const Form& f, const LaneCodes& codes) {
  long G = s.G, C = s.C, group = s.group, parts = (C + SCORE_ROWS - 1) / SCORE_ROWS;
  const f16* bias = (const f16*)s.bias;
#pragma omp parallel num_threads(s.threads)
  {
    Scratch scratch;
#pragma omp for schedule(dynamic, 1)
    for (long i = 0; i < s.B * G * parts; i++) {
      long head = i / parts, b = head / G, g = head % G, from = i % parts * SCORE_ROWS;
      long to = std::min<long>(from + SCORE_ROWS, std::min<long>(s.num_clusters[b], C));
      if (from >= to) continue;
      const float* own = q + head * group * f.D;
      float* scores = s.logit + head * group * C;
      if (codes.word) {
        LaneCodes coded = codes.head(head, C, f.D);
        score_coded_group(own, group, coded, from, to, C, f, scores);
      } else {
        const T* rows = (const T*)s.centroid + b * s.stride[0] + g * s.stride[1];
        score_group(own, group, rows, from, to, C, f, scores);
      }
      for (int h = 0; bias && h < group; h++) {
        const f16* more = bias + head * C;
        float* x = scores + h * C;
        long c = from;
        for (; c + W <= to; c += W) store(x + c, load(x + c) + widen(more + c));
        for (; c < to; c++) x[c] += number(more[c]);
      }
    }
#pragma omp for schedule(dynamic, 1)
    for (long head = 0; head < s.B * G; head++) {
      long b = head / G, n = std::min<long>(s.num_clusters[b], C);
      const int32_t* size = s.size + b * s.stride[2] + head % G * s.stride[3];
      rank_clusters(s.logit + head * group * C, C, group, size, s.limit != nullptr, n, scratch);
      const uint32_t* key = scratch.key.data();
      int32_t *best = s.best + head * s.R, *rest = s.rest + head * s.E;
      scratch.selector.run(key, n, s.retrieved[b], s.estimated[b], best, s.R, rest, s.E);
      if (s.limit) trim(s.limit[b], best, s.R, rest, s.E, s.estimated[b], key, size);
    }
  }
}

// Finite scores of any sign to keys in the same order, above ABSENT and below NEWEST.
constexpr uint32_t NEWEST = UINT32_MAX;
uint32_t signed_key(float score) {
  uint32_t bits;
  score += 0.f;  // one zero only
  memcpy(&bits, &score, 4);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}

// Bounds of pages: positive parts of the queries times maxima plus negative parts times minima.
template <class T>
void pages(const float* q, const T* low, const T* high, const int32_t* num_pages, const int32_t* r,
           int32_t* best, long B, long G, long C, long R, int D, bool newest,
           const int64_t* stride, int threads) {
  Form f{D, 1.f, 0.f, false};
  long parts = (C + SCORE_ROWS - 1) / SCORE_ROWS;
  std::vector<float> positive(B * G * C), negative(B * G * C);
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(dynamic, 1)
    for (long i = 0; i < B * G * parts; i++) {
      long head = i / parts, b = head / G, g = head % G, from = i % parts * SCORE_ROWS;
      long to = std::min<long>(from + SCORE_ROWS, std::min<long>(num_pages[b], C));
      if (from >= to) continue;
      const float* own = q + head * 2 * D;
      score_group(own, 1, high + b * stride[2] + g * stride[3], from, to, C, f,
                  positive.data() + head * C);
      score_group(own + D, 1, low + b * stride[0] + g * stride[1], from, to, C, f,
                  negative.data() + head * C);
    }
    Selector selector;
    std::vector<uint32_t> key(padded(C));
#pragma omp for schedule(dynamic, 1)
    for (long head = 0; head < B * G; head++) {
      long n = std::min<long>(num_pages[head / G], C);
      for (long i = 0; i < n; i++)
        key[i] = signed_key(positive[head * C + i] + negative[head * C + i]);
      if (newest && n) key[n - 1] = NEWEST;
      std::fill(key.begin() + n, key.begin() + padded(n), ABSENT);
      selector.run(key.data(), n, r[head / G], 0, best + head * R, R, nullptr, 0);
    }
  }
}

}  // namespace

extern "C" void retrobench_page_select(
    const float* q, const void* low, const void* high, const int32_t* num_pages,
    const int32_t* selected, int32_t* best, int64_t B, int64_t G, int64_t C, int64_t R, int32_t D,
    int32_t newest, const int64_t* stride, int32_t dtype, int32_t threads) {
  auto run = [&](auto type) {
    using T = decltype(type);
    pages(q, (const T*)low, (const T*)high, num_pages, selected, best, B, G, C, R, D, newest != 0,
          stride, threads);
  };
  if (dtype == 0) run(float{});
  else if (dtype == 1) run(bf16{});
  else run(f16{});
}

extern "C" void retrobench_cluster_select(const Select* s) {
  Query q(s->q, s->B * s->G * s->group * s->D, s->dot != 0);
  LaneCodes codes{s->scale_of ? (const int32_t*)s->centroid : nullptr, (const f16*)s->scale_of,
                  s->mean, s->bits};
  Form f{(int)s->D, s->scale, s->softcap, s->dot != 0 && !s->scale_of};
  if (s->dtype == 0) clusters<float>(*s, q, f, codes);
  else if (s->dtype == 1) clusters<bf16>(*s, q, f, codes);
  else clusters<f16>(*s, q, f, codes);
}
