"""Port a TensorFlow checkpoint and fine-tune it on your own images.

python examples/port_and_fine_tune.py v3-small_224_0.75_float/ [FOLDER OF CLASS FOLDERS]

Without a folder, it trains on random images to show the steps.
"""

import sys

import torch
from torch.utils.data import DataLoader, TensorDataset

import porter

source = sys.argv[1]
classes = 3

# The backbone has the checkpoint's weights; the classifier is new. Only the classifier and the embedding are trained
variant = porter.inspect(source)["variant"]
model = porter.create_model(variant, source, num_classes=classes, dropout=0.2)
for name, parameter in model.named_parameters():
    parameter.requires_grad = name.startswith(("classifier", "conv_head"))

if len(sys.argv) > 2:
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    change = v2.Compose([v2.RandomResizedCrop(224), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    data = ImageFolder(sys.argv[2], v2.Compose([change, v2.Normalize([0.5] * 3, [0.5] * 3)]))
else:
    torch.manual_seed(0)
    data = TensorDataset(torch.rand(12, 3, 96, 96) * 2 - 1, torch.arange(12) % classes)

model.train()
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
for epoch in range(2):
    for images, labels in DataLoader(data, batch_size=4, shuffle=True):
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"epoch {epoch}: loss {loss.item():.3f}")

torch.save(model.eval().state_dict(), "fine_tuned.pth")
again = porter.create_model(variant, "fine_tuned.pth", num_classes=classes)
print("fine_tuned.pth:", sum(p.numel() for p in again.parameters()), "parameters")
