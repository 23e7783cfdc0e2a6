// Feeds spans of tokens to the softmax in blocks, one block ahead for prefetching.
#pragma once
#include <type_traits>
#include "codes.h"
#include "softmax.h"

struct Form { int D; float scale, softcap; bool dot; };

template <class T, int NH>
void attend_block(Heads& s, Tokens<T>& block, const Tokens<T>* next, const Form& f) {
  alignas(64) float score[BLOCK * NH + W];
  int padded = (block.n + 7) / 8 * 8;
  for (int i = block.n; i < padded; i++) block.k[i] = block.k[block.n - 1];
  scores<T, NH>(s, block.k, padded, f.D, f.dot, next, score);
  finish_scores(score, block.n, NH, f.scale, f.softcap);
  bool whole = next && next->n == BLOCK;
  fold<T, NH>(s, block.v, nullptr, block.n, whole ? next->v : nullptr, score, f.D);
}

// All query heads of one KV head, in chunks of at most four.
template <class T> class Attention {
 public:
  Attention(const float* query, int group, const Form& form) : form_(form) {
    for (int h = 0; h < group; h += MAX_HEADS) {
      heads_.emplace_back();
      heads_.back().template load<T>(query + h * form.D, std::min(MAX_HEADS, group - h), form.D);
      heads_.back().clear(form.D);
    }
  }
  // `count` consecutive tokens
  void span(const T* k, const T* v, long count) {
    for (long i = 0; i < count; i++) {
      Tokens<T>& block = block_[filling_];
      block.k[block.n] = k + i * form_.D;
      block.v[block.n++] = v + i * form_.D;
      if (block.n == BLOCK) turn();
    }
  }
  // Adds everything fed so far to out[0..group).
  void finish(Partial* out) {
    turn();
    turn();
    for (size_t c = 0; c < heads_.size(); c++) unload<T>(heads_[c], out + c * MAX_HEADS, form_.D);
  }

 private:
  // computes the block before the one just filled, which is fetched meanwhile
  void turn() {
    Tokens<T>&next = block_[filling_], &now = block_[1 - filling_];
    for (size_t c = 0; now.n && c < heads_.size(); c++) {
      const Tokens<T>* ahead = c == 0 ? &next : nullptr;
      switch (heads_[c].nh) {
        case 1: attend_block<T, 1>(heads_[c], now, ahead, form_); break;
        case 2: attend_block<T, 2>(heads_[c], now, ahead, form_); break;
        default: attend_block<T, 4>(heads_[c], now, ahead, form_);
      }
    }
    now.n = 0;
    filling_ = 1 - filling_;
  }
  Form form_;
  std::vector<Heads> heads_;
  Tokens<T> block_[2];
  int filling_ = 0;
};

// Where the value sums of clusters are: as they are stored, or as codes of the means.
template <class T> struct Sums {
  const T* rows;
  const Codes* codes;  // null: `rows`
  const int32_t* size;
  std::vector<float>* buffer;  // for codes, [BLOCK][D]

  const T* at(long c, int place, int D) const {
    if constexpr (std::is_same_v<T, float>)
      if (codes) {
        codes->unpack(c, D, size[c], buffer->data() + place * D);
        return buffer->data() + place * D;
      }
    return rows + c * D;
  }
  void ahead(long c, int D) const {
    if (codes) fetch(codes->code + c * codes->row_bytes(D), codes->row_bytes(D));
    else fetch(rows + c * D, D * sizeof(T));
  }
};

// Estimated clusters: logits are known, value sums are added, sizes weigh the denominator.
// `logit` is [group][C]; T is the type of the value sums.
template <class T, int NH>
void estimate(const int32_t* cluster, long n, const float* logit, long C, const Sums<T>& sums,
              Heads& s, int D) {
  alignas(64) float score[BLOCK * NH + W], count[BLOCK * NH + W];
  const T* v[BLOCK];
  for (long i = 0; i < n;) {
    int m = 0;
    for (; i < n && m < BLOCK; i++) {
      int32_t c = cluster[i];
      if (c < 0 || sums.size[c] <= 0) continue;
      for (int h = 0; h < NH; h++) {
        score[m * NH + h] = logit[(h < s.used ? h : 0) * C + c];
        count[m * NH + h] = sums.size[c];
      }
      v[m] = sums.at(c, m, D);
      m++;
    }
    for (long j = i; j < std::min(n, i + BLOCK); j++)
      if (cluster[j] >= 0) sums.ahead(cluster[j], D);
    if (m == 0) continue;
    int width = (m * NH + W - 1) / W * W;
    for (int j = m * NH; j < width; j++) score[j] = -INFINITY, count[j] = 0;
    fold<T, NH>(s, v, count, m, nullptr, score, D);
  }
}

template <class T>
void estimate_group(const int32_t* cluster, long n, const float* logit, long C,
                    const Sums<T>& sums, int group, int D, Partial* out) {
  for (int h = 0; h < group; h += MAX_HEADS) {
    Heads s;
    s.used = std::min(MAX_HEADS, group - h);
    s.nh = s.used > 2 ? 4 : s.used;
    s.clear(D);
    const float* own = logit + h * C;
    switch (s.nh) {
      case 1: estimate<T, 1>(cluster, n, own, C, sums, s, D); break;
      case 2: estimate<T, 2>(cluster, n, own, C, sums, s, D); break;
      default: estimate<T, 4>(cluster, n, own, C, sums, s, D);
    }
    unload<T>(s, out + h, D);
  }
}

// Clusters that no list names, through the mean of their values: what `total` leaves.
template <class T>
void estimate_rest(const int32_t* const lists[3], const long lengths[3], const float* logit, long C,
                   const Sums<T>& sums, const float* total, int group, int D, Partial* out) {
  std::vector<float> weight(C + W, 0.f), masked(C + W), mean(D);
  for (int i = 0; i < D; i++) mean[i] = total[place<T>(i)];
  double tokens = 0;
  for (long c = 0; c < C; c++) weight[c] = std::max(sums.size[c], 0);
  for (int k = 0; k < 3; k++)
    for (long i = 0; i < lengths[k]; i++) {
      long c = lists[k][i];
      if (c < 0 || weight[c] == 0) continue;
      const T* row = sums.at(c, 0, D);
      for (int d = 0; d < D; d += 2 * W) {  // in the lane order of T
        vf low, high;
        load_pair(row + d, low, high);
        store(&mean[d], load(&mean[d]) - low);
        store(&mean[d + W], load(&mean[d + W]) - high);
      }
      weight[c] = 0;
    }
  for (long c = 0; c < C; c++) tokens += weight[c];
  if (tokens == 0) return;
  std::vector<float> acc(D);
  for (int h = 0; h < group; h++) {
    const float* x = logit + h * C;
    float most = LOWEST, sum = 0;
    vf top = splat(LOWEST);
    long whole = C / W * W;
    for (long c = 0; c < C; c += W) {
      vf now = splat(-INFINITY);
      if (c < whole) now = load(x + c);
      else for (long i = c; i < C; i++) now[i - c] = x[i];
      now = load(&weight[c]) > 0.f ? now : splat(-INFINITY);
      store(&masked[c], now);
      top = vmax(top, now);
    }
    for (int j = 0; j < W; j++) most = std::max(most, top[j]);
    vf part = vf{};
    for (long c = 0; c < C; c += W) part += vexp(load(&masked[c]) - most) * load(&weight[c]);
    for (int j = 0; j < W; j++) sum += part[j];
    for (int d = 0; d < D; d++) acc[place<T>(d)] = sum * mean[d] / (float)tokens;
    merge(out[h], most, sum, acc.data(), D);
  }
}
