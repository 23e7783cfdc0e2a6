// Feeds spans of tokens to the softmax in blocks, one block ahead for prefetching.
#pragma once
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

// Estimated clusters: logits are known, value sums are added, sizes weigh the denominator.
// `logit` is [group][C]; T is the type of the value sums.
template <class T, int NH>
void estimate(const int32_t* cluster, long n, const float* logit, long C, const int32_t* size,
              const T* value_sum, Heads& s, int D) {
  alignas(64) float score[BLOCK * NH + W], count[BLOCK * NH + W];
  const T* v[BLOCK];
  auto row = [&](long i) { return value_sum + (long)cluster[i] * D; };
  for (long i = 0; i < n;) {
    int m = 0;
    for (; i < n && m < BLOCK; i++) {
      int32_t c = cluster[i];
      if (c < 0 || size[c] <= 0) continue;
      for (int h = 0; h < NH; h++) {
        score[m * NH + h] = logit[(h < s.used ? h : 0) * C + c];
        count[m * NH + h] = size[c];
      }
      v[m++] = value_sum + (long)c * D;
    }
    for (long j = i; j < std::min(n, i + BLOCK); j++)
      if (cluster[j] >= 0) fetch(row(j), D * sizeof(T));
    if (m == 0) continue;
    int width = (m * NH + W - 1) / W * W;
    for (int j = m * NH; j < width; j++) score[j] = -INFINITY, count[j] = 0;
    fold<T, NH>(s, v, count, m, nullptr, score, D);
  }
}

template <class T>
void estimate_group(const int32_t* cluster, long n, const float* logit, long C,
                    const int32_t* size, const T* value_sum, int group, int D, Partial* out) {
  for (int h = 0; h < group; h += MAX_HEADS) {
    Heads s;
    s.used = std::min(MAX_HEADS, group - h);
    s.nh = s.used > 2 ? 4 : s.used;
    s.clear(D);
    const float* own = logit + h * C;
    switch (s.nh) {
      case 1: estimate<T, 1>(cluster, n, own, C, size, value_sum, s, D); break;
      case 2: estimate<T, 2>(cluster, n, own, C, size, value_sum, s, D); break;
      default: estimate<T, 4>(cluster, n, own, C, size, value_sum, s, D);
    }
    unload<T>(s, out + h, D);
  }
}
