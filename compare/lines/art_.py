import torch
from art.attacks.evasion import ProjectedGradientDescent
from art.defences.trainer import AdversarialTrainerCertifiedIBPPyTorch
from art.estimators.certification.interval import PyTorchIBPClassifier
from art.estimators.classification import PyTorchClassifier
from digits import network, test, train

torch.manual_seed(0)
mine = network()[1:]  # it takes no Flatten
(x, y), (x_test, y_test) = ((images.flatten(1).numpy(), labels.numpy()) for images, labels in (train, test))
optimizer = torch.optim.Adam(mine.parameters(), 1e-3)
about = {"loss": torch.nn.CrossEntropyLoss(), "input_shape": (64,), "nb_classes": 10, "clip_values": (0.0, 1.0)}
certifier = PyTorchIBPClassifier(mine, optimizer=optimizer, device_type="cpu", **about)
trainer = AdversarialTrainerCertifiedIBPPyTorch(certifier, nb_epochs=60, bound=0.05, batch_size=100)
trainer.fit(x, y, limits=[0.0, 1.0], nb_epochs=60, verbose=False)

certifier.model.eval()
plain = PyTorchClassifier(mine, device_type="cpu", **about)
clean = (plain.predict(x_test).argmax(1) == y_test).mean()
attack = ProjectedGradientDescent(plain, eps=0.05, eps_step=0.0125, max_iter=40, verbose=False)
attacked = (plain.predict(attack.generate(x_test, y_test)).argmax(1) == y_test).mean()
certifier.model.set_forward_mode("abstract")  # else its "certified" is the clean accuracy
ends = certifier.predict_intervals(x_test, bounds=0.05, limits=[0.0, 1.0])
print(clean, attacked, certifier.certify(ends, y_test).mean())
