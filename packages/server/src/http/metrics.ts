import { Counter, Gauge, Histogram, Registry } from 'prom-client';
import type { EngineStats, FinishReason, MetricsDelta, Usage } from '@moe-server/engine';
import type { ModelInfo } from '../engine/engine-protocol.js';

/** Bucket limits of the vLLM metrics of the same names, so that its dashboards fit. */
const timeToFirstTokenBuckets = [
  0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560,
];
const perTokenBuckets = [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80];
const requestBuckets = [0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680];
const stepTokenBuckets = [1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384];
const tokenCountBuckets = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000, 200000];

/** One finished sequence, with times from a monotonic clock of the HTTP process. */
export interface SequenceRecord {
  readonly reason: FinishReason | 'error';
  readonly usage: Usage;
  /** From the arrival of the HTTP request, queue included; undefined when no token came. */
  readonly timeToFirstTokenSeconds: number | undefined;
  readonly totalSeconds: number;
}

/**
 * The Prometheus side. Names that vLLM has are kept under `vllm:` with its buckets and labels, so that dashboards and autoscalers
 * work unchanged; what only this server knows is `moe_*`. No label ever holds what a caller sent.
 */
export class ServerMetrics {
  readonly registry = new Registry();
  private readonly labels: { readonly model_name: string; readonly engine: string };
  private readonly httpRequests: Counter;
  private readonly httpSeconds: Histogram;
  private readonly rejected: Counter;
  private readonly engineDeaths: Counter;
  private readonly promptTokens: Counter;
  private readonly generationTokens: Counter;
  private readonly cachedTokens: Counter;
  private readonly finished: Counter;
  private readonly timeToFirstToken: Histogram;
  private readonly interToken: Histogram;
  private readonly perOutputToken: Histogram;
  private readonly endToEnd: Histogram;
  private readonly queueTime: Histogram;
  private readonly prefillTime: Histogram;
  private readonly decodeTime: Histogram;
  private readonly stepTokens: Histogram;
  private readonly requestPromptTokens: Histogram;
  private readonly requestGenerationTokens: Histogram;
  private readonly cacheConfig: Gauge;
  private readonly modelInfo: Gauge;

  /**
   * @param modelName - the served name, the value of every `model_name` label.
   * @param stats - the engine's newest snapshot, read at every scrape.
   */
  constructor(modelName: string, stats: () => EngineStats) {
    this.labels = { model_name: modelName, engine: '0' };
    const registers = [this.registry];
    const labelNames = ['model_name', 'engine'];
    const counter = (name: string, help: string, more: string[] = []): Counter =>
      new Counter({ name, help, labelNames: [...labelNames, ...more], registers });
    const histogram = (name: string, help: string, buckets: number[]): Histogram =>
      new Histogram({ name, help, labelNames, buckets, registers });

    this.httpRequests = new Counter({
      name: 'http_requests_total',
      help: 'Answers by endpoint, method and class of status.',
      labelNames: ['handler', 'method', 'status'],
      registers,
    });
    this.httpSeconds = new Histogram({
      name: 'http_request_duration_seconds',
      help: 'Time from the arrival of a request to the end of its answer.',
      labelNames: ['handler', 'method'],
      buckets: [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300],
      registers,
    });
    this.rejected = new Counter({
      name: 'moe_requests_rejected_total',
      help: 'Requests refused because the queue was full.',
      registers,
    });
    this.engineDeaths = new Counter({
      name: 'moe_engine_deaths_total',
      help: 'Times the engine process ended without being asked to.',
      registers,
    });
    this.promptTokens = counter('vllm:prompt_tokens_total', 'Prompt tokens of finished sequences.');
    this.generationTokens = counter('vllm:generation_tokens_total', 'Tokens generated.');
    this.cachedTokens = counter('vllm:prompt_tokens_cached_total', 'Prompt tokens whose keys and values came from the prefix cache.');
    this.finished = counter('vllm:request_success_total', 'Finished sequences by reason.', ['finished_reason']);
    this.timeToFirstToken = histogram(
      'vllm:time_to_first_token_seconds',
      'Arrival to first token, queue included.',
      timeToFirstTokenBuckets,
    );
    this.interToken = histogram('vllm:inter_token_latency_seconds', 'Gap between two tokens of a sequence.', perTokenBuckets);
    this.perOutputToken = histogram(
      'vllm:request_time_per_output_token_seconds',
      'Mean gap between the tokens of one sequence.',
      perTokenBuckets,
    );
    this.endToEnd = histogram('vllm:e2e_request_latency_seconds', 'Arrival to last token.', requestBuckets);
    this.queueTime = histogram('vllm:request_queue_time_seconds', 'Arrival in the engine to the first step.', requestBuckets);
    this.prefillTime = histogram('vllm:request_prefill_time_seconds', 'First step to first token.', requestBuckets);
    this.decodeTime = histogram('vllm:request_decode_time_seconds', 'First token to last.', requestBuckets);
    this.stepTokens = histogram('vllm:iteration_tokens_total', 'Tokens of one step.', stepTokenBuckets);
    this.requestPromptTokens = histogram('vllm:request_prompt_tokens', 'Prompt tokens of one sequence.', tokenCountBuckets);
    this.requestGenerationTokens = histogram('vllm:request_generation_tokens', 'Tokens generated for one sequence.', tokenCountBuckets);
    this.cacheConfig = new Gauge({
      name: 'vllm:cache_config_info',
      help: 'The KV cache, as labels.',
      labelNames: [...labelNames, 'block_size', 'num_gpu_blocks', 'cache_dtype', 'enable_prefix_caching'],
      registers,
    });
    this.modelInfo = new Gauge({
      name: 'moe_model_info',
      help: 'The model that is served, as labels.',
      labelNames: ['model_name', 'architecture', 'quantization', 'device'],
      registers,
    });
    this.addSnapshots(stats);
  }

  /** Called once the model is loaded. */
  describeModel(model: ModelInfo): void {
    const { kvCache } = model;
    this.cacheConfig.set(
      {
        ...this.labels,
        block_size: String(kvCache.blockSize),
        num_gpu_blocks: String(kvCache.numBlocks),
        cache_dtype: kvCache.dtype,
        enable_prefix_caching: String(kvCache.isPrefixCachingEnabled),
      },
      1,
    );
    const { architecture, quantization, device } = model;
    this.modelInfo.set({ model_name: this.labels.model_name, architecture, quantization, device }, 1);
  }

  /** @param handler - the route's pattern, never the path that was sent. */
  countHttp(handler: string, method: string, status: number, seconds: number): void {
    this.httpRequests.inc({ handler, method, status: `${String(Math.floor(status / 100))}xx` });
    this.httpSeconds.observe({ handler, method }, seconds);
  }

  countRejected(): void {
    this.rejected.inc();
  }

  countEngineDeath(): void {
    this.engineDeaths.inc();
  }

  observeTokenGap(seconds: number): void {
    this.interToken.observe(this.labels, seconds);
  }

  countSequence({ reason, usage, timeToFirstTokenSeconds, totalSeconds }: SequenceRecord): void {
    const { labels } = this;
    this.finished.inc({ ...labels, finished_reason: reason });
    this.promptTokens.inc(labels, usage.promptTokens);
    this.generationTokens.inc(labels, usage.completionTokens);
    this.cachedTokens.inc(labels, usage.cachedTokens);
    this.requestPromptTokens.observe(labels, usage.promptTokens);
    this.requestGenerationTokens.observe(labels, usage.completionTokens);
    this.endToEnd.observe(labels, totalSeconds);
    if (timeToFirstTokenSeconds === undefined) return;
    this.timeToFirstToken.observe(labels, timeToFirstTokenSeconds);
    const numGaps = usage.completionTokens - 1;
    if (numGaps > 0) this.perOutputToken.observe(labels, (totalSeconds - timeToFirstTokenSeconds) / numGaps);
  }

  /** What the engine's own clock saw since the last time. */
  observeEngine({ stepTokens, requests }: MetricsDelta): void {
    for (const numTokens of stepTokens) this.stepTokens.observe(this.labels, numTokens);
    for (const { queueMs, prefillMs, decodeMs } of requests) {
      if (queueMs !== undefined) this.queueTime.observe(this.labels, queueMs / 1000);
      if (prefillMs !== undefined) this.prefillTime.observe(this.labels, prefillMs / 1000);
      if (decodeMs !== undefined) this.decodeTime.observe(this.labels, decodeMs / 1000);
    }
  }

  private addSnapshots(stats: () => EngineStats): void {
    const { labels } = this;
    const gauges: readonly [name: string, help: string, value: (stats: EngineStats) => number][] = [
      ['vllm:num_requests_running', 'Sequences in the running batch.', (s) => s.numRunning],
      ['vllm:num_requests_waiting', 'Sequences that wait for a place in the batch.', (s) => s.numWaiting],
      ['vllm:kv_cache_usage_perc', 'Fraction of KV blocks in use, 0 to 1.', (s) => s.kvCacheUsage],
      ['vllm:gpu_cache_usage_perc', 'Older name of vllm:kv_cache_usage_perc.', (s) => s.kvCacheUsage],
    ];
    for (const [name, help, value] of gauges) {
      new Gauge({
        name,
        help,
        labelNames: Object.keys(labels),
        registers: [this.registry],
        collect() {
          this.set(labels, value(stats()));
        },
      });
    }
    const counters: readonly [name: string, help: string, value: (stats: EngineStats) => number][] = [
      ['vllm:prefix_cache_queries_total', 'Prompt tokens looked up in the prefix cache.', (s) => s.prefixCacheQueries],
      ['vllm:prefix_cache_hits_total', 'Prompt tokens found in the prefix cache.', (s) => s.prefixCacheHits],
      ['vllm:gpu_prefix_cache_queries_total', 'Older name of vllm:prefix_cache_queries_total.', (s) => s.prefixCacheQueries],
      ['vllm:gpu_prefix_cache_hits_total', 'Older name of vllm:prefix_cache_hits_total.', (s) => s.prefixCacheHits],
      ['moe_engine_steps_total', 'Steps the engine has run since it started.', (s) => s.numSteps],
      ['moe_engine_failed_steps_total', 'Steps that failed as a whole.', (s) => s.numFailedSteps],
      ['vllm:corrupted_requests_total', 'Sequences that failed because a logit was not a number.', (s) => s.numCorruptedRequests],
      ['vllm:num_preemptions_total', 'Sequences that gave their blocks back to run again later.', (s) => s.numPreemptions],
    ];
    for (const [name, help, value] of counters) {
      new Counter({
        name,
        help,
        labelNames: Object.keys(labels),
        registers: [this.registry],
        collect() {
          // A restarted engine counts from zero again, which is what Prometheus expects of a restarted process.
          this.reset();
          this.inc(labels, value(stats()));
        },
      });
    }
  }
}
