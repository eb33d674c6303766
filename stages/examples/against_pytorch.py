"""Training steps and forward passes of trestle and of PyTorch, in turns on the same machine.

    python against_pytorch.py [--infer] [--compile] [--threads 1,2] PATH_OF_THE_EXAMPLE [MODEL ...]
    python against_pytorch.py --device cuda [--precision bf16] [--infer] [--compile] PATH_OF_THE_EXAMPLE [MODEL ...]

Needs torch and torchvision, for the ViT timm. Every figure is the fastest and the median of a number of steps (forward, backward, AdamW); with
other load on the machine the processor time of one thread is the figure to trust. PyTorch runs NCHW and channels_last, with --compile through
torch.compile as well. --steps N and --batch N are for trying it out; --device cuda takes an example built with `--features cuda` and the models
resnet-50-224px and vit-b-16 if none is named; --precision bf16 is PyTorch's autocast.
"""
import json
import subprocess
import sys
import time


def diffusion_unet():
    """The network of stages/src/generator, layer by layer."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    W, T, HEADS, WORDS, LENGTH = 112, 64, 4, 12, 9

    def attend(q, k, v, heads):
        split = lambda x: x.unflatten(2, (heads, -1)).transpose(1, 2)
        return F.scaled_dot_product_attention(split(q), split(k), split(v)).transpose(1, 2).flatten(2)

    class Text(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.places = nn.Embedding(WORDS, T), nn.Parameter(torch.randn(LENGTH, T) * 0.02)
            self.n1, self.n2, self.n3 = nn.LayerNorm(T), nn.LayerNorm(T), nn.LayerNorm(T)
            self.q, self.k, self.v, self.o = (nn.Linear(T, T, bias=False) for _ in range(4))
            self.a, self.b = nn.Linear(T, 2 * T), nn.Linear(2 * T, T)

        def forward(self, ids):
            x = self.table(ids) + self.places
            h = self.n1(x)
            x = x + self.o(attend(self.q(h), self.k(h), self.v(h), HEADS))
            x = x + self.b(F.gelu(self.a(self.n2(x)), approximate="tanh"))
            return self.n3(x)

    class Block(nn.Module):
        def __init__(self, c, o):
            super().__init__()
            self.n1, self.n2 = nn.GroupNorm(8, c), nn.GroupNorm(8, o)
            self.c1, self.c2 = nn.Conv2d(c, o, 3, padding=1), nn.Conv2d(o, o, 3, padding=1)
            self.emb = nn.Linear(2 * W, o)
            self.skip = nn.Conv2d(c, o, 1) if c != o else nn.Identity()

        def forward(self, x, emb):
            h = self.c1(F.silu(self.n1(x))) + self.emb(emb)[:, :, None, None]
            return self.c2(F.silu(self.n2(h))) + self.skip(x)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.text = Text()
            self.stem, self.out = nn.Conv2d(12, W, 3, padding=1), nn.Conv2d(W, 12, 3, padding=1)
            self.t1, self.t2, self.words = nn.Linear(32, 2 * W), nn.Linear(2 * W, 2 * W), nn.Linear(T, 2 * W)
            self.down0, self.down1, self.mid = Block(W, W), Block(2 * W, 2 * W), Block(2 * W, 2 * W)
            self.up1, self.up0, self.last = Block(4 * W, 2 * W), Block(2 * W, W), Block(W, W)
            self.downsample, self.upsample = nn.Conv2d(W, 2 * W, 3, 2, 1), nn.Conv2d(2 * W, W, 1)
            self.an, self.q, self.k = nn.LayerNorm(2 * W), nn.Linear(2 * W, 2 * W), nn.Linear(T, 2 * W, bias=False)
            self.v, self.o, self.norm = nn.Linear(T, 2 * W), nn.Linear(2 * W, 2 * W), nn.GroupNorm(8, W)

        def forward(self, x, times, ids):
            words = self.text(ids)
            emb = F.silu(self.t2(F.silu(self.t1(times))) + self.words(words.mean(1)))
            upper = self.down0(self.stem(F.pixel_unshuffle(x, 2)), emb)
            lower = self.down1(self.downsample(upper), emb)
            flat = lower.flatten(2).transpose(1, 2)
            flat = flat + self.o(attend(self.q(self.an(flat)), self.k(words), self.v(words), HEADS))
            mid = self.mid(flat.transpose(1, 2).unflatten(2, lower.shape[2:]), emb)
            h = self.upsample(self.up1(torch.cat([mid, lower], 1), emb))
            h = self.up0(torch.cat([F.interpolate(h, scale_factor=2), upper], 1), emb)
            return F.pixel_shuffle(self.out(F.silu(self.norm(self.last(h, emb)))), 2)

    return Net()


def torch_side(name, threads, steps, layout, infer, device, precision, images):
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

    def vit_base():
        import timm

        return timm.create_model("vit_base_patch16_224", num_classes=10)

    def vit():
        import timm

        return timm.models.VisionTransformer(img_size=32, patch_size=4, embed_dim=192, depth=12, num_heads=3, num_classes=10)

    make, batch, shape = {
        "plain": (Plain, 64, (1, 28, 28)),
        "small-cnn": (Small, 64, (1, 28, 28)),
        "resnet-18-32px": (resnet, 64, (3, 32, 32)),
        "resnet-18-224px": (lambda: tv.resnet18(num_classes=10), 8, (3, 224, 224)),
        "vit-ti-4": (vit, 64, (3, 32, 32)),
        "squeezenet": (lambda: tv.squeezenet1_1(num_classes=10, dropout=0.0), 64, (3, 64, 64)),
        "resnet-50-224px": (lambda: tv.resnet50(num_classes=10), 64, (3, 224, 224)),
        "vit-b-16": (vit_base, 64, (3, 224, 224)),
        "unet": (diffusion_unet, 16, (3, 32, 32)),
    }[name]
    batch = images or batch
    model, x = make().train(not infer).to(device), torch.randn(batch, *shape, device=device)
    if "channels_last" in layout:
        model, x = model.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    y = torch.arange(batch, device=device) % 10
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01, fused=True)
    if name == "unet":
        y, times, ids = torch.randn(batch, *shape), torch.randn(batch, 32), torch.zeros(batch, 9, dtype=torch.int64)
        y, inputs = y.to(device), (x, times.to(device), ids.to(device))
        criterion = F.mse_loss
    else:
        inputs, criterion = (x,), F.cross_entropy
    if "compiled" in layout:
        model = torch.compile(model)
    half = lambda: torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16")
    wall, processor = [], []
    for step in range(steps + 3):
        start, begin = time.perf_counter(), time.process_time()
        if infer:
            with torch.inference_mode(), half():
                model(*inputs)
        else:
            optimiser.zero_grad(set_to_none=True)
            with half():
                loss = criterion(model(*inputs).float(), y)
            loss.backward()
            optimiser.step()
        if device == "cuda":
            torch.cuda.synchronize()
        if step >= 3:
            wall.append((time.perf_counter() - start) * 1e3)
            processor.append((time.process_time() - begin) * 1e3)
    wall.sort(), processor.sort()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(dict(wall_min=wall[0], wall_median=wall[len(wall) // 2], cpu_min=processor[0], cpu_median=processor[len(wall) // 2], peak_mb=peak)))


def main():
    words = sys.argv[1:]
    infer, compiled = "--infer" in words, "--compile" in words
    threads = [1, 2]
    if "--threads" in words:
        threads = [int(t) for t in words.pop(words.index("--threads") + 1).split(",")]
    option = lambda name, usual: words.pop(words.index(name) + 1) if name in words else usual
    device, precision = option("--device", "cpu"), option("--precision", "f32")
    count_asked, images = int(option("--steps", 0)), int(option("--batch", 0))
    if device == "cuda" and "--threads" not in words:
        threads = [1]
    words = [word for word in words if not word.startswith("--")]
    known = ["plain", "small-cnn", "resnet-18-32px", "resnet-18-224px", "squeezenet", "vit-ti-4", "unet"]
    if not words:
        sys.exit(__doc__)
    # The largest ones take minutes a step on a CPU: they are measured there only by name.
    large = ["resnet-50-224px", "vit-b-16"]
    program, names = words[0], words[1:] or (large if device == "cuda" else known)
    known = known + large
    if unknown := [name for name in names if name not in known]:
        sys.exit(f"there is no model `{unknown[0]}`; there are {', '.join(known)}")
    steps = {"plain": 100, "small-cnn": 60, "squeezenet": 12}
    for name in names:
        count = count_asked or (30 if device == "cuda" else steps.get(name, 6) * (3 if infer else 1))
        extra = ["infer"] * infer + ["cuda"] * (device == "cuda") + ["bf16"] * (precision == "bf16") + [f"batch={images}"] * (images > 0)
        for number in threads:
            sides = {"trestle": [program, name, str(number), str(count)] + extra}
            layouts = ["nchw", "channels_last"] + (["nchw compiled", "channels_last compiled"] if compiled else [])
            for layout in layouts:
                sides[f"PyTorch {layout}"] = [sys.executable, __file__, "--torch", name, str(number), str(count), layout, "infer" if infer else "train", device, precision, str(images)]
            best = {}
            for _ in range(2):
                for side, command in sides.items():
                    done = subprocess.run(command, capture_output=True, text=True)
                    if done.returncode != 0:
                        print(f"{name} {side}: {done.stderr.strip().splitlines()[-1:]}", flush=True)
                        continue
                    found = json.loads(done.stdout.splitlines()[-1])
                    kept = best.setdefault(side, found)
                    best[side] = {key: min(value, kept[key]) for key, value in found.items()}
            for side, found in best.items():
                print(f"{name:<16} {number} threads  {side:<30} " + "  ".join(f"{key} {value:8.2f}" for key, value in found.items()), flush=True)
            if "trestle" not in best or len(best) == 1:
                continue
            rival = {key: min(best[side][key] for side in best if side != "trestle") for key in best["trestle"]}
            # Steps of a millisecond may take no processor time, by a clock that ticks every four.
            ratios = {key: rival[key] / ours if ours else float("nan") for key, ours in best["trestle"].items()}
            print(f"{name:<16} {number} threads  {'PyTorch / trestle':<30} " + "  ".join(f"{key} {value:8.2f}" for key, value in ratios.items()), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--torch"]:
        torch_side(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5], sys.argv[6] == "infer", sys.argv[7], sys.argv[8], int(sys.argv[9]))
    else:
        main()
