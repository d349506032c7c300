"""Times PyTorch's convolutions for the bench `trusted_conv`.

Reads lines `threads samples in height width out kernel stride padding` and answers each with six times in seconds:
the smallest and the median of the forward pass, the input gradient and the weight gradient. Each is the better of
the NCHW and the channels-last memory format.
"""

import sys
import time

import torch

REPEATS = 7


def measure(run):
    run()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    times.sort()
    return times[0], times[len(times) // 2]


def layer(samples, channels, height, width, out, kernel, stride, padding):
    x = torch.randn(samples, channels, height, width)
    weight = torch.randn(out, channels, kernel, kernel)
    dy = torch.randn_like(torch.nn.functional.conv2d(x, weight, stride=stride, padding=padding))
    best = [(float("inf"), float("inf"))] * 3
    for layout in (torch.contiguous_format, torch.channels_last):
        x, weight, dy = (t.contiguous(memory_format=layout) for t in (x, weight, dy))

        def backward(mask):
            return torch.ops.aten.convolution_backward(
                dy, x, weight, None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1, mask
            )

        runs = (
            lambda: torch.nn.functional.conv2d(x, weight, stride=stride, padding=padding),
            lambda: backward([True, False, False]),
            lambda: backward([False, True, False]),
        )
        best = [min(old, measure(run)) for old, run in zip(best, runs)]
    return best


def main():
    for line in sys.stdin:
        threads, *shape = map(int, line.split())
        torch.set_num_threads(threads)
        with torch.no_grad():
            times = layer(*shape)
        print(" ".join(f"{t:.9f}" for pair in times for t in pair), flush=True)


if __name__ == "__main__":
    main()
