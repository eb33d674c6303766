"""Training images a second of trestle and of PyTorch, in turns on the same machine.

    python against_pytorch.py PATH_OF_THE_EXAMPLE [MODEL ...]

Needs torch and torchvision. Every figure is the fastest of a number of steps (forward, backward, AdamW, batch 64); with other load on the
machine the processor time of one thread is the figure to trust.
"""
import json
import subprocess
import sys
import time

BATCH = 64


def torch_side(name, threads, steps, channels_last):
    import resource

    import torch
    import torch.nn.functional as F
    import torchvision.models as tv
    from torch import nn

    torch.set_num_threads(threads)
    torch.manual_seed(0)

    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.c1, self.c2 = nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 64, 3, padding=1)
            self.f1, self.f2 = nn.Linear(3136, 128), nn.Linear(128, 10)

        def forward(self, x):
            x = F.max_pool2d(F.relu(self.c1(x)), 2)
            x = F.max_pool2d(F.relu(self.c2(x)), 2)
            return self.f2(F.relu(self.f1(x.flatten(1))))

    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            sizes = [1, 32, 64, 128]
            self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1, bias=False) for i, o in zip(sizes, sizes[1:]))
            self.norms = nn.ModuleList(nn.GroupNorm(o // 8, o) for o in sizes[1:])
            self.head = nn.Linear(128, 10)

        def forward(self, x):
            for i, (conv, norm) in enumerate(zip(self.convs, self.norms)):
                x = norm(conv(x))
                x = F.relu(F.max_pool2d(x, 2) if i < 2 else x)
            return self.head(x.mean((2, 3)))

    def resnet():
        model = tv.resnet18(num_classes=10)
        model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
        return model

    def vit():
        import timm

        return timm.models.VisionTransformer(img_size=32, patch_size=4, embed_dim=192, depth=12, num_heads=3, num_classes=10)

    make, shape = {
        "plain": (Plain, (1, 28, 28)),
        "small-cnn": (Small, (1, 28, 28)),
        "resnet-18-32px": (resnet, (3, 32, 32)),
        "vit-ti-4": (vit, (3, 32, 32)),
        "squeezenet": (lambda: tv.squeezenet1_1(num_classes=10, dropout=0.0), (3, 64, 64)),
    }[name]
    model, x = make().train(), torch.randn(BATCH, *shape)
    if channels_last:
        model, x = model.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    y = torch.arange(BATCH) % 10
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01, fused=True)
    wall, processor = [], []
    for step in range(steps + 3):
        start, begin = time.perf_counter(), time.process_time()
        optimiser.zero_grad(set_to_none=True)
        F.cross_entropy(model(x), y).backward()
        optimiser.step()
        if step >= 3:
            wall.append((time.perf_counter() - start) * 1e3)
            processor.append((time.process_time() - begin) * 1e3)
    wall.sort(), processor.sort()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(dict(wall_min=wall[0], wall_median=wall[len(wall) // 2], cpu_min=processor[0], cpu_median=processor[len(wall) // 2], peak_mb=peak)))


def main():
    program, names = sys.argv[1], sys.argv[2:] or ["plain", "small-cnn", "resnet-18-32px"]
    steps = {"plain": 100, "small-cnn": 60, "squeezenet": 8}
    for name in names:
        count = steps.get(name, 6)
        for threads in (1, 2):
            sides = {"trestle": [program, name, str(threads), str(count)]}
            for layout in ("nchw", "channels_last"):
                sides[f"PyTorch {layout}"] = [sys.executable, __file__, "--torch", name, str(threads), str(count), layout]
            best = {}
            for _ in range(2):
                for side, command in sides.items():
                    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
                    kept = best.setdefault(side, found)
                    best[side] = {key: min(value, kept[key]) for key, value in found.items()}
            rival = {key: min(best[side][key] for side in best if side != "trestle") for key in best["trestle"]}
            for side, found in best.items():
                print(f"{name:<16} {threads} threads  {side:<22} " + "  ".join(f"{key} {value:8.2f}" for key, value in found.items()), flush=True)
            ratios = {key: rival[key] / best["trestle"][key] for key in ("wall_min", "cpu_min", "peak_mb")}
            print(f"{name:<16} {threads} threads  PyTorch / trestle      " + "  ".join(f"{key} {value:8.2f}" for key, value in ratios.items()), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "--torch":
        torch_side(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5] == "channels_last")
    else:
        main()
