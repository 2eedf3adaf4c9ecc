import torch
from digits import network, test, train

import etb_plugin

torch.manual_seed(0)
mine = network()
etb_plugin.train(mine, train, method="ibp", eps=0.05, epochs=60)
found = etb_plugin.evaluate(mine, test, eps=0.05, certify=["ibp", "crown"])
print(found.clean_accuracy, found.pgd_accuracy, found.certified_accuracy)
