#include "sample.h"

#include <cmath>
#include <limits>

/*
 * No vocabulary is sorted. One pass takes the maximum of every chunk of kChunk logits; the k-th largest of these maxima
 * bounds the k-th largest logit from below, so that few chunks need a closer look. top_p works on those tokens that
 * could be in it at all, and there by partitioning, like quickselect with sums instead of counts.
 */
namespace moe {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct Candidate {
  float logit;
  float weight; /* exp((logit - largest) / temperature) */
  int32_t token;
};

/* By falling logit, then by rising token. */
bool before(const Candidate& a, const Candidate& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
}

int64_t num_chunks(int64_t vocab_size) { return (vocab_size + kChunk - 1) / kChunk; }

struct RowScratch {
  RowScratch(Scratch& scratch, int64_t vocab_size, int64_t max_adjustments) {
    maxima = scratch.take<float>(num_chunks(vocab_size));
    sums = scratch.take<float>(num_chunks(vocab_size));
    ordered = scratch.take<float>(num_chunks(vocab_size));
    candidates = scratch.take<Candidate>(vocab_size);
    partitioned = scratch.take<Candidate>(vocab_size);
    originals = scratch.take<float>(max_adjustments);
  }
  float *maxima, *sums, *ordered;      /* [num_chunks] */
  Candidate *candidates, *partitioned; /* [vocab_size] */
  float* originals;                    /* [max_adjustments] */
};

class Row {
 public:
  Row(const Sample& op, const OpContext& context, const RowScratch& scratch, int64_t row)
      : op_(op), kernels_(context.kernels), step_(context.step), scratch_(scratch), row_(row) {}

  void run() {
    largest_ = kernels_.chunk_max(logits_, vocab_size_, scratch_.maxima);
    kernels_.chunk_exp_sums(logits_, vocab_size_, largest_, 1, scratch_.sums);
    const double sum = total();
    /* NaN or +Infinity among the logits, or nothing but -Infinity: no distribution to sample from or to report. */
    if (!std::isfinite(sum)) return report(-1);
    log_sum_ = static_cast<double>(largest_) + std::log(sum);
    report_top();
    if (step_.targets[row_] >= 0) return report(step_.targets[row_]);
    adjust();
    const int32_t token = choose();
    restore();
    report(token);
  }

 private:
  double total() const {
    double sum = 0;
    for (int64_t c = 0; c < num_chunks(vocab_size_); c++) sum += static_cast<double>(scratch_.sums[c]);
    return sum;
  }

  void report(int32_t token) {
    op_.token_ids[row_] = token;
    op_.logprobs[row_] = token < 0 ? kNan : logprob(logits_[token]);
    op_.ranks[row_] = token < 0 ? 0 : rank(token);
  }
  /* 1 + the tokens that come before this one by falling logit, then rising id. */
  int32_t rank(int32_t token) const {
    const float own = logits_[token];
    int64_t ahead = kernels_.count_greater(logits_, vocab_size_, own);
    for (int32_t i = 0; i < token; i++) ahead += logits_[i] == own;
    return static_cast<int32_t>(1 + ahead);
  }
  float logprob(float logit) const { return static_cast<float>(static_cast<double>(logit) - log_sum_); }

  /* Every token whose logit is at least the threshold, by rising token. maxima must be those of the logits. */
  int64_t collect(float threshold) const {
    int64_t count = 0;
    for (int64_t c = 0; c < num_chunks(vocab_size_); c++) {
      if (scratch_.maxima[c] < threshold) continue;
      const int64_t end = std::min((c + 1) * kChunk, vocab_size_);
      for (int64_t i = c * kChunk; i < end; i++) {
        if (logits_[i] >= threshold) scratch_.candidates[count++] = {logits_[i], 0, static_cast<int32_t>(i)};
      }
    }
    return count;
  }

  /* At least the k best tokens, by rising token; returns how many. */
  int64_t collect_best(int64_t k) const {
    const int64_t chunks = num_chunks(vocab_size_);
    if (k > chunks) return collect(kNever);
    std::copy_n(scratch_.maxima, chunks, scratch_.ordered);
    std::nth_element(scratch_.ordered, scratch_.ordered + (k - 1), scratch_.ordered + chunks, std::greater<>());
    return collect(scratch_.ordered[k - 1]);
  }

  void report_top() const {
    const int64_t top = std::min<int64_t>(step_.num_top_logprobs[row_], vocab_size_);
    if (top == 0) return;
    const int64_t count = collect_best(top);
    std::partial_sort(scratch_.candidates, scratch_.candidates + top, scratch_.candidates + count, before);
    for (int64_t i = 0; i < top; i++) {
      op_.top_ids[row_ * op_.max_top_logprobs + i] = scratch_.candidates[i].token;
      op_.top_logprobs[row_ * op_.max_top_logprobs + i] = logprob(scratch_.candidates[i].logit);
    }
  }

  void adjust() {
    const int32_t begin = step_.adjustment_starts[row_], end = step_.adjustment_starts[row_ + 1];
    for (int32_t i = begin; i < end; i++) {
      const Adjustment& a = step_.adjustments[i];
      float& x = logits_[a.token];
      scratch_.originals[i - begin] = x;
      if (a.seen != 0) x = x > 0 ? x / step_.repetition_penalties[row_] : x * step_.repetition_penalties[row_];
      x -= step_.frequency_penalties[row_] * static_cast<float>(a.output_count);
      if (a.output_count > 0) x -= step_.presence_penalties[row_];
      x += a.bias;
    }
    if (begin < end) largest_ = kernels_.chunk_max(logits_, vocab_size_, scratch_.maxima);
  }
  /* Backwards, so that a token adjusted twice gets its first value. */
  void restore() {
    const int32_t begin = step_.adjustment_starts[row_];
    for (int32_t i = step_.adjustment_starts[row_ + 1]; i-- > begin;)
      logits_[step_.adjustments[i].token] = scratch_.originals[i - begin];
  }

  int32_t choose() const {
    if (!std::isfinite(largest_)) return -1; /* everything was masked */
    if (step_.temperatures[row_] == 0) return argmax();
    const bool filtered = step_.top_ks[row_] > 0 || step_.top_ps[row_] < 1 || step_.min_ps[row_] > 0;
    return filtered ? choose_filtered() : choose_unfiltered();
  }

  int32_t argmax() const {
    int64_t chunk = 0;
    while (scratch_.maxima[chunk] != largest_) chunk++;
    int64_t token = chunk * kChunk;
    while (logits_[token] != largest_) token++;
    return static_cast<int32_t>(token);
  }

  float uniform() const {
    return sample_uniform(step_.seeds[row_], static_cast<uint64_t>(static_cast<int64_t>(step_.counters[row_])));
  }

  /* Finds the chunk in which the cumulative sum passes, then the token in it. */
  int32_t choose_unfiltered() const {
    const float temperature = step_.temperatures[row_];
    kernels_.chunk_exp_sums(logits_, vocab_size_, largest_, temperature, scratch_.sums);
    const double target = total() * static_cast<double>(uniform());
    /* Rounding may leave the sum short of the target: then it is the last chunk, and in it the last token, that can be.
     */
    int64_t chunk = 0;
    double before_chunk = 0, passed = 0;
    for (int64_t c = 0; c < num_chunks(vocab_size_) && passed <= target; c++) {
      if (!(scratch_.sums[c] > 0)) continue;
      chunk = c;
      before_chunk = passed;
      passed += static_cast<double>(scratch_.sums[c]);
    }
    float weights[kChunk];
    const int64_t begin = chunk * kChunk, count = std::min(kChunk, vocab_size_ - begin);
    kernels_.exp_terms(logits_ + begin, weights, count, largest_, temperature);
    int64_t token = begin;
    passed = before_chunk;
    for (int64_t i = 0; i < count && passed <= target; i++) {
      if (!(weights[i] > 0)) continue;
      token = begin + i;
      passed += static_cast<double>(weights[i]);
    }
    return static_cast<int32_t>(token);
  }

  int32_t choose_filtered() const {
    const int64_t k = step_.top_ks[row_];
    const double top_p = step_.top_ps[row_];
    int64_t count = 0;
    double wanted = 0; /* weight that top_p asks for */
    if (k > 0 && k < vocab_size_) {
      count = keep_top_k(collect_best(k), k);
      wanted = top_p * weigh(count);
    } else if (top_p < 1) {
      kernels_.chunk_exp_sums(logits_, vocab_size_, largest_, step_.temperatures[row_], scratch_.sums);
      wanted = top_p * total();
      count = collect_for_top_p(wanted);
    } else {
      count = collect(logit_of_weight(static_cast<double>(step_.min_ps[row_])));
      weigh(count);
    }
    if (top_p < 1) count = keep_top_p(count, wanted);
    const float least = step_.min_ps[row_];
    double sum = 0;
    for (int64_t i = 0; i < count; i++) {
      Candidate& c = scratch_.candidates[i];
      if (c.weight < least) c.weight = 0; /* the largest weighs 1 */
      sum += static_cast<double>(c.weight);
    }
    const double target = sum * static_cast<double>(uniform());
    double passed = 0;
    int32_t token = -1;
    for (int64_t i = 0; i < count; i++) {
      if (scratch_.candidates[i].weight == 0) continue;
      token = scratch_.candidates[i].token;
      passed += static_cast<double>(scratch_.candidates[i].weight);
      if (passed > target) break;
    }
    return token;
  }

  /* Drops candidates below the k-th largest logit; those equal to it stay. */
  int64_t keep_top_k(int64_t count, int64_t k) const {
    std::copy_n(scratch_.candidates, count, scratch_.partitioned);
    std::nth_element(scratch_.partitioned, scratch_.partitioned + (k - 1), scratch_.partitioned + count, before);
    const float threshold = scratch_.partitioned[k - 1].logit;
    const auto kept = std::remove_if(scratch_.candidates, scratch_.candidates + count,
                                     [&](const Candidate& c) { return c.logit < threshold; });
    return kept - scratch_.candidates;
  }

  /* A logit whose weight is a little less than this, so that rounding leaves nothing out; weight 0: no logit is too
   * small. */
  float logit_of_weight(double weight) const {
    return weight <= 0 ? kNever : largest_ + step_.temperatures[row_] * static_cast<float>(std::log(weight / 2));
  }

  /*
   * Candidates whose weights together exceed what top_p wants, and with each all that are more probable. Usually tokens
   * down to a small fraction of the most probable one's weight suffice; at last all are taken that could matter: tokens
   * that weigh less than (1 - top_p) / vocab_size, where the most probable weighs 1, weigh too little even together.
   */
  int64_t collect_for_top_p(double wanted) const {
    constexpr double kSafely = 1.0001;
    for (const double weight : {0x1p-5, 0x1p-10, 0x1p-15}) {
      const int64_t count = collect(logit_of_weight(weight));
      if (weigh(count) > wanted * kSafely) return count;
    }
    const int64_t count =
        collect(logit_of_weight((1 - static_cast<double>(step_.top_ps[row_])) / static_cast<double>(vocab_size_)));
    weigh(count);
    return count;
  }

  /* Gives each candidate its weight; returns their sum. */
  double weigh(int64_t count) const {
    constexpr int64_t kBlock = 64;
    float values[kBlock];
    double sum = 0;
    for (int64_t first = 0; first < count; first += kBlock) {
      const int64_t n = std::min(kBlock, count - first);
      Candidate* candidates = scratch_.candidates + first;
      for (int64_t i = 0; i < n; i++) values[i] = candidates[i].logit;
      kernels_.exp_terms(values, values, n, largest_, step_.temperatures[row_]);
      for (int64_t i = 0; i < n; i++) {
        candidates[i].weight = values[i];
        sum += static_cast<double>(values[i]);
      }
    }
    return sum;
  }

  /*
   * Most candidates are far from where the set ends: sorted into buckets by logit, all buckets but one are wholly in it
   * or out of it. Copies the candidates of that one to `partitioned` and returns how many; `inside` becomes the weight
   * of those before them.
   */
  int64_t copy_last_bucket(int64_t count, double wanted, double& inside) const {
    constexpr int kBuckets = 256;
    constexpr float kLeastRange = 1e-30f; /* what it divides stays finite */
    const Candidate* const all = scratch_.candidates;
    float lowest = largest_;
    for (int64_t i = 0; i < count; i++) lowest = std::min(lowest, all[i].logit);
    const float range = largest_ - lowest;
    const float scale = range > kLeastRange ? static_cast<float>(kBuckets) / range : 0;
    /* Falls with the logit, also as rounded. An infinite range makes one bucket of all that is finite. */
    const auto bucket_of = [&](const Candidate& c) {
      const float place = (largest_ - c.logit) * scale;
      return place < kBuckets - 1 ? static_cast<int>(place) : kBuckets - 1;
    };
    double weights[kBuckets] = {};
    for (int64_t i = 0; i < count; i++) weights[bucket_of(all[i])] += static_cast<double>(all[i].weight);
    int last = 0;
    double passed = 0;
    for (int b = 0; b < kBuckets && passed < wanted; b++) {
      if (!(weights[b] > 0)) continue;
      last = b;
      inside = passed;
      passed += weights[b];
    }
    const auto end = std::copy_if(all, all + count, scratch_.partitioned,
                                  [&](const Candidate& c) { return bucket_of(c) == last; });
    return end - scratch_.partitioned;
  }

  /* The smallest set of the most probable candidates that weighs as much as wanted, by rising token. */
  int64_t keep_top_p(int64_t count, double wanted) const {
    Candidate* const all = scratch_.partitioned;
    /* Invariant: [0, low) is in the set and weighs `inside` with what comes before the bucket; what comes from high on
     * is not needed. */
    int64_t low = 0;
    double inside = 0;
    int64_t high = copy_last_bucket(count, wanted, inside);
    while (high - low > 1) {
      const int64_t middle = low + (high - low) / 2;
      std::nth_element(all + low, all + middle, all + high, before);
      double left = 0;
      for (int64_t i = low; i < middle; i++) left += static_cast<double>(all[i].weight);
      if (inside + left >= wanted) {
        high = middle;
      } else {
        inside += left;
        low = middle;
      }
    }
    const Candidate last = all[low];
    const auto kept = std::remove_if(scratch_.candidates, scratch_.candidates + count,
                                     [&](const Candidate& c) { return before(last, c); });
    return kept - scratch_.candidates;
  }

  const Sample& op_;
  const Kernels& kernels_;
  const StepInputs& step_;
  const RowScratch& scratch_;
  const int64_t row_;
  const int64_t vocab_size_ = op_.vocab_size;
  float* const logits_ = op_.logits + row_ * op_.vocab_size;
  float largest_ = 0;
  double log_sum_ = 0;
};

uint64_t splitmix64(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
  x = (x ^ x >> 27) * 0x94d049bb133111ebu;
  return x ^ x >> 31;
}

}  // namespace

float sample_uniform(uint64_t seed, uint64_t counter) {
  return static_cast<float>(splitmix64(splitmix64(seed) + counter) >> 40) * 0x1p-24f;
}

void run(const Sample& op, const OpContext& context) {
  Scratch count(nullptr);
  const int64_t max_adjustments = context.step.adjustment_starts[context.step.num_logit_rows];
  RowScratch(count, op.vocab_size, max_adjustments);
  const uint64_t thread_bytes = count.used();
  for_rows(context, context.step.num_logit_rows, op.vocab_size, [&](int64_t begin, int64_t end, uint32_t thread) {
    Scratch memory(context.workspace + thread_bytes * thread);
    const RowScratch scratch(memory, op.vocab_size, max_adjustments);
    for (int64_t row = begin; row < end; row++) Row(op, context, scratch, row).run();
  });
}

uint64_t workspace_bytes(const Sample& op, const StepLimits& limits, uint32_t num_threads) {
  Scratch count(nullptr);
  RowScratch(count, op.vocab_size, limits.max_adjustments);
  return count.used() * num_threads;
}

}  // namespace moe
